// SPDX-License-Identifier: Apache-2.0

import java.io.FileDescriptor;
import java.io.FileInputStream;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;

/**
 * A file server over TLS that knows nothing of TLS, for "offloadd inetd", which starts it for each connection:
 *
 * <pre>cd /srv/files && LC_ALL=C offloadd inetd --application /run/offloadd/web.sock -- java FileServer.java</pre>
 *
 * The connection is descriptors 0 and 1. What a failed read met is asked on descriptor 4 and answered on 3. When this
 * ends, inetd says to the peer that nothing more comes; or, if the exit status is not 0, resets the connection.
 *
 * <p>A peer sends one line, "GET NAME" or "PUT NAME". GET is answered by "OK SIZE" and the file; what follows PUT, to the
 * end of the stream, becomes the file.
 */
public final class FileServer {
    /** Reads from the peer. A record that is no data is asked about, and the end of the stream told from a cut. */
    static final class Peer extends InputStream {
        // FileInputStream reads plainly, and without a buffer of its own.
        private final InputStream in = new FileInputStream(FileDescriptor.in);
        private final InputStream answers;
        private final OutputStream questions;

        Peer() throws IOException {
            answers = new FileInputStream("/dev/fd/3");
            questions = new FileOutputStream("/dev/fd/4");
        }

        @Override
        public int read() throws IOException {
            byte[] one = new byte[1];
            return read(one, 0, 1) < 0 ? -1 : one[0] & 0xff;
        }

        @Override
        public int read(byte[] into, int from, int room) throws IOException {
            while (true) {
                try {
                    int n = in.read(into, from, room);
                    if (n >= 0) {
                        return n;
                    }
                } catch (IOException error) {
                    // Java tells errors apart by their text only, which is in the language of LC_ALL.
                    if (!"Input/output error".equals(error.getMessage())) {
                        throw error;
                    }
                    String answer = ask();
                    switch (answer) {
                        case "go on":
                            continue;
                        case "end":
                            return -1;
                        default:
                            throw new IOException(answer);
                    }
                }
                throw new IOException("cut off: the peer did not say that this is the end");
            }
        }

        private String ask() throws IOException {
            questions.write("met\n".getBytes());
            return line(answers);
        }
    }

    static String line(InputStream in) throws IOException {
        StringBuilder line = new StringBuilder();
        for (int c; (c = in.read()) != '\n'; line.append((char) c)) {
            if (c < 0 || line.length() > 2048) {
                throw new IOException("no whole line");
            }
        }
        return line.toString();
    }

    static void get(String name, FileOutputStream out) throws IOException {
        try (FileChannel file = FileChannel.open(Path.of(name))) {
            long size = file.size();
            out.write(("OK " + size + "\n").getBytes());
            for (long at = 0; at < size; ) {
                at += file.transferTo(at, size - at, out.getChannel()); // sendfile
            }
            System.err.println("sent " + name);
        }
    }

    static void put(String name, InputStream in, OutputStream out) throws IOException {
        Path part = Path.of("." + name + ".part");
        Files.copy(in, part, StandardCopyOption.REPLACE_EXISTING);
        Files.move(part, Path.of(name), StandardCopyOption.REPLACE_EXISTING);
        System.err.println("stored " + name + ", " + Files.size(Path.of(name)) + " bytes");
        out.write(("OK " + Files.size(Path.of(name)) + "\n").getBytes());
    }

    public static void main(String[] arguments) {
        try {
            Peer in = new Peer();
            FileOutputStream out = new FileOutputStream(FileDescriptor.out);
            String[] words = line(in).strip().split(" ", 2);
            if (words.length != 2 || words[1].isEmpty() || words[1].startsWith(".") || words[1].contains("/")) {
                System.exit(1);
            } else if (words[0].equals("GET")) {
                get(words[1], out);
            } else if (words[0].equals("PUT")) {
                put(words[1], in, out);
            } else {
                System.exit(1);
            }
        } catch (IOException error) {
            System.err.println("refused: " + error.getMessage());
            System.exit(1);
        }
    }
}
