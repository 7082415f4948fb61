// SPDX-License-Identifier: Apache-2.0

// A TLS 1.3 client that changes its key after each mebibyte. It sends pseudo-random bytes, and reads
// them back: java KeyLimits.java PORT BYTES

import java.security.Security;
import java.security.SecureRandom;
import java.security.cert.X509Certificate;
import java.util.Arrays;
import java.util.Random;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLSocket;
import javax.net.ssl.TrustManager;
import javax.net.ssl.X509TrustManager;

public class KeyLimits {
    public static void main(String[] args) throws Exception {
        Security.setProperty("jdk.tls.keyLimits",
            "AES/GCM/NoPadding KeyUpdate 2^20, ChaCha20-Poly1305 KeyUpdate 2^20");
        var anybody = new X509TrustManager() {
            public void checkClientTrusted(X509Certificate[] chain, String type) {}
            public void checkServerTrusted(X509Certificate[] chain, String type) {}
            public X509Certificate[] getAcceptedIssuers() { return new X509Certificate[0]; }
        };
        var context = SSLContext.getInstance("TLSv1.3");
        context.init(null, new TrustManager[] {anybody}, new SecureRandom());
        int port = Integer.parseInt(args[0]), size = Integer.parseInt(args[1]);
        try (var socket = (SSLSocket) context.getSocketFactory().createSocket("127.0.0.1", port)) {
            socket.startHandshake();
            var sent = new byte[size];
            new Random(1).nextBytes(sent);
            var writer = new Thread(() -> {
                try {
                    for (int at = 0; at < size; at += 1 << 16)
                        socket.getOutputStream().write(sent, at, Math.min(1 << 16, size - at));
                } catch (Exception e) {
                    e.printStackTrace();
                }
            });
            writer.start();
            var got = socket.getInputStream().readNBytes(size);
            writer.join();
            if (!Arrays.equals(sent, got))
                throw new Exception(got.length + " bytes came back of " + size + ", or others");
            socket.shutdownOutput();
            if (socket.getInputStream().read() != -1)
                throw new Exception("no end of the stream");
            System.out.println("equal, " + socket.getSession().getCipherSuite());
        }
    }
}
