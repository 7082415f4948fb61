// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/offloadd/offloadd/blob/handoff"
	"github.com/offloadd/offloadd/ktls"
)

// demoApplicationCommand is what an application looks like: a listener from the
// daemon instead of one of its own, and nothing else about TLS.
func demoApplicationCommand(env *environment) *cobra.Command {
	var socket, directory string
	c := &cobra.Command{
		Use:     "demo-application",
		Short:   "Serve a directory over HTTP on connections from a daemon",
		Long:    `The application of the demo: an ordinary http.Server that serves a directory.`,
		Example: "  offloadd demo-application --socket /run/offloadd/web.sock --directory /srv/www",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if socket == "" || directory == "" {
				return usageError("demo-application needs --socket and --directory")
			}
			if info, err := os.Stat(directory); err != nil || !info.IsDir() {
				return usageError("--directory=%s is no directory", directory)
			}
			return serveDirectory(cmd.Context(), socket, directory, slog.New(slog.NewTextHandler(env.stderr, nil)))
		},
	}
	c.Flags().StringVar(&socket, "socket", "", "the listener's application `socket`")
	c.Flags().StringVar(&directory, "directory", "", "`directory` to serve")
	return c
}

func serveDirectory(ctx context.Context, socket, directory string, log *slog.Logger) error {
	connections, err := handoff.Listen(socket, log)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: http.FileServer(http.Dir(directory)), ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(ktls.NewListener(connections)); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
