/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What the observer writes and user space reads; observed.go has the same. Nothing has a gap that is not named. */
#ifndef OFFLOADD_OBSERVER_H
#define OFFLOADD_OBSERVER_H

#include "kernel.h"

/* Directions, as indices. */
enum { TX, RX, DIRECTIONS };

/* What calls returned. EAGAIN and interruptions are no errors. */
enum {
	ERROR_BADMSG,     /* a record did not authenticate, or is too short */
	ERROR_IO,         /* a record is no data, and the caller left no room for its type */
	ERROR_MSGSIZE,    /* a record is too long */
	ERROR_INVAL,
	ERROR_RESET,      /* the connection is no more: ECONNRESET, ECONNABORTED, EPIPE, ENOTCONN */
	ERROR_TIMEDOUT,
	ERROR_KEYEXPIRED, /* the peer has changed its key, and nobody has set the new one */
	ERROR_OTHER,
	ERRORS
};

/* How a connection ended. */
enum {
	END_NONE,    /* it is live */
	END_PROPER,  /* by FIN, and what had come was read */
	END_UNREAD,  /* closed with unread data, which TCP answers by a reset */
	END_ABORTED, /* from here: SO_LINGER 0, or destroyed */
	END_RESET,   /* by the peer */
	END_TIMEOUT,
	END_OTHER,
	ENDS
};

struct address {
	__u8 local[16]; /* IPv4 in the first four bytes */
	__u8 peer[16];
	__u16 local_port;
	__u16 peer_port;
	__u16 family;
	__u16 unused;
};

/* What a connection did since it got its first key. Indices are directions. */
struct connection {
	__u64 since;                /* CLOCK_BOOTTIME, in ns */
	__u64 sequence[DIRECTIONS]; /* of the next record, as last seen */
	__u64 bytes[DIRECTIONS];    /* content of records of every type */
	__u64 records[DIRECTIONS];
	__u64 calls[DIRECTIONS];
	__u32 errors[ERRORS];
	__u32 rekeys[DIRECTIONS];
	__u32 failures;  /* how often the record layer gave up */
	__s32 failure;   /* the last of them, as -errno */
	__u32 unread;    /* bytes from the wire that nobody had read at the end */
	__u32 unread_records; /* records that were decrypted, and not read whole */
	__s32 ended;     /* errno of the socket when TCP ended it */
	__u8 path[DIRECTIONS]; /* TLS_BASE without a key, TLS_SW, TLS_HW */
	__u8 end;
	__u8 peer_first; /* the peer's FIN came before the close */
	__u16 version;
	__u16 cipher;
	struct address address;
	__u32 unused;
};

enum { EVENT_INSTALLED = 1, EVENT_REKEYED, EVENT_ERROR, EVENT_CLOSED };

struct event {
	__u64 time; /* CLOCK_BOOTTIME, in ns */
	__u64 cookie;
	__u32 kind;
	__u32 direction; /* not of CLOSED, nor of an ERROR of the record layer */
	__s32 error;     /* of ERROR, as -errno */
	__u32 layer;     /* the record layer gave up; else a call returned the error */
	struct connection connection;
};

/* Sums over all connections since the observer was loaded, for each CPU. */
struct sums {
	__u64 connections;
	__u64 installs[DIRECTIONS][2]; /* in software, in a device */
	__u64 rekeys[DIRECTIONS];
	__u64 bytes[DIRECTIONS];
	__u64 records[DIRECTIONS];
	__u64 calls[DIRECTIONS];
	__u64 errors[ERRORS];
	__u64 failures;
	__u64 ends[ENDS];
	__u64 unlisted; /* connections that the map had no room for */
	__u64 lost;     /* events that the ring had no room for */
};

/* A kernel TLS socket, as the iterator lists it. */
struct listed {
	__u64 cookie;
	__u64 inode;
	__u64 sequence[DIRECTIONS];
	__u64 sent; /* TCP's counters of bytes */
	__u64 acked;
	__u64 received;
	__u64 retransmitted;
	__u32 uid;
	__u32 state;
	__u16 version;
	__u16 cipher;
	__u8 path[DIRECTIONS];
	__u16 unused;
	struct address address;
};

#endif
