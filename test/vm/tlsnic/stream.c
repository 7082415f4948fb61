// SPDX-License-Identifier: GPL-2.0-only
/*
 * AES-GCM over TLS 1.2 records (RFC 5288), as a stream: a packet may begin and end
 * anywhere in a record. Written for clearness: GHASH goes bit by bit.
 */
#include "tlsnic.h"

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 12, 0)
#include <linux/unaligned.h>
#else
#include <asm/unaligned.h>
#endif

int tlsnic_key_set(struct tlsnic_key *key, const u8 *raw, u32 size, const u8 *salt)
{
	u8 block[AES_BLOCK_SIZE] = {};
	int err;

	err = tlsnic_aes_prepare(&key->aes, raw, size);
	if (err)
		return err;
	memmove(key->key, raw, size);
	memmove(key->salt, salt, sizeof(key->salt));
	key->size = size;
	aes_encrypt(&key->aes, block, block);
	key->hash[0] = get_unaligned_be64(block);
	key->hash[1] = get_unaligned_be64(block + 8);
	memzero_explicit(block, sizeof(block));
	return 0;
}

/* tlsnic_stream_begin sets the stream to the beginning of a record. */
void tlsnic_stream_begin(struct tlsnic_stream *s, u32 seq, const u8 *record)
{
	memset(s, 0, sizeof(*s));
	s->next = seq;
	s->record = get_unaligned_be64(record);
}

/* hash_block multiplies in GF(2^128), SP 800-38D, Section 6.3. */
static void hash_block(struct tlsnic_stream *s, const struct tlsnic_key *key, const u8 *block)
{
	u64 x[2] = { s->hash[0] ^ get_unaligned_be64(block), s->hash[1] ^ get_unaligned_be64(block + 8) };
	u64 v[2] = { key->hash[0], key->hash[1] }, z[2] = {}, carry;
	int i;

	for (i = 0; i < 128; i++) {
		u64 bit = -(x[i / 64] >> (63 - i % 64) & 1);

		z[0] ^= v[0] & bit;
		z[1] ^= v[1] & bit;
		carry = -(v[1] & 1);
		v[1] = v[1] >> 1 | v[0] << 63;
		v[0] = v[0] >> 1 ^ (0xe1ULL << 56 & carry);
	}
	s->hash[0] = z[0];
	s->hash[1] = z[1];
}

static u32 payload_size(const struct tlsnic_stream *s)
{
	return s->length - TLSNIC_HEAD - TLS_TAG_SIZE;
}

/* read_length takes the length from the header, unless it cannot be one. */
static bool read_length(struct tlsnic_stream *s)
{
	u16 length = get_unaligned_be16(s->head + 3);

	s->length = TLS_HEADER_SIZE + length;
	return s->head[0] >= 20 && s->head[0] <= 24 && get_unaligned_be16(s->head + 1) == TLS_1_2_VERSION &&
	       length >= TLSNIC_NONCE + TLS_TAG_SIZE &&
	       length <= TLSNIC_NONCE + TLS_MAX_PAYLOAD_SIZE + TLS_TAG_SIZE;
}

/* start_record has seen header and nonce: it sets the counter and hashes what is only authenticated. */
static void start_record(struct tlsnic_stream *s, const struct tlsnic_key *key)
{
	u8 aad[AES_BLOCK_SIZE] = {};

	memcpy(s->counter, key->salt, sizeof(key->salt));
	memcpy(s->counter + sizeof(key->salt), s->head + TLS_HEADER_SIZE, TLSNIC_NONCE);
	put_unaligned_be32(1, s->counter + 12);
	aes_encrypt(&key->aes, s->mask, s->counter);

	put_unaligned_be64(s->record, aad);
	memcpy(aad + 8, s->head, 3);
	put_unaligned_be16(payload_size(s), aad + 11);
	s->hash[0] = s->hash[1] = 0;
	hash_block(s, key, aad);
}

/* crypt_byte is the counter mode; block collects the ciphertext. */
static u8 crypt_byte(struct tlsnic_stream *s, const struct tlsnic_key *key, bool seal, u32 at, u8 in)
{
	u32 i = at % AES_BLOCK_SIZE;
	u8 out;

	if (!i) {
		put_unaligned_be32(get_unaligned_be32(s->counter + 12) + 1, s->counter + 12);
		aes_encrypt(&key->aes, s->pad, s->counter);
	}
	out = in ^ s->pad[i];
	s->block[i] = seal ? out : in;
	if (i == AES_BLOCK_SIZE - 1)
		hash_block(s, key, s->block);
	return out;
}

static void make_tag(struct tlsnic_stream *s, const struct tlsnic_key *key)
{
	u32 rest = payload_size(s) % AES_BLOCK_SIZE;
	u8 lengths[AES_BLOCK_SIZE];
	int i;

	if (rest) {
		memset(s->block + rest, 0, AES_BLOCK_SIZE - rest);
		hash_block(s, key, s->block);
	}
	put_unaligned_be64(TLS_AAD_SPACE_SIZE * 8, lengths);
	put_unaligned_be64((u64)payload_size(s) * 8, lengths + 8);
	hash_block(s, key, lengths);
	put_unaligned_be64(s->hash[0], s->tag);
	put_unaligned_be64(s->hash[1], s->tag + 8);
	for (i = 0; i < TLS_TAG_SIZE; i++)
		s->tag[i] ^= s->mask[i];
}

/* tag_byte writes the tag or compares it; the last byte ends the record. */
static bool tag_byte(struct tlsnic_stream *s, const struct tlsnic_key *key, bool seal, u32 at, u8 in, u8 *out)
{
	if (!at)
		make_tag(s, key);
	*out = seal ? s->tag[at] : in;
	s->wrong |= *out ^ s->tag[at];
	if (at < TLS_TAG_SIZE - 1)
		return true;
	s->record++;
	s->at = 0;
	return !s->wrong;
}

static bool stream_byte(struct tlsnic_stream *s, const struct tlsnic_key *key, bool seal, u8 in, u8 *out)
{
	u32 at = s->at++;

	if (at >= TLSNIC_HEAD && at < s->length - TLS_TAG_SIZE) {
		*out = crypt_byte(s, key, seal, at - TLSNIC_HEAD, in);
		return true;
	}
	if (at >= TLSNIC_HEAD)
		return tag_byte(s, key, seal, at - (s->length - TLS_TAG_SIZE), in, out);
	*out = s->head[at] = in;
	if (at == TLS_HEADER_SIZE - 1)
		return read_length(s);
	if (at == TLSNIC_HEAD - 1)
		start_record(s, key);
	return true;
}

/*
 * tlsnic_stream_run encrypts (seal) or decrypts the next bytes. If they are no
 * records, or a tag is wrong, it returns false, and the stream is lost.
 */
bool tlsnic_stream_run(struct tlsnic_stream *s, const struct tlsnic_key *key,
		       bool seal, const u8 *in, u8 *out, u32 len)
{
	u32 i;

	for (i = 0; i < len; i++) {
		if (!stream_byte(s, key, seal, in[i], out + i)) {
			s->lost = true;
			return false;
		}
	}
	s->next += len;
	return true;
}
