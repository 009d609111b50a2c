package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/sqlite"
)

func main() {
	if err := serve(); err != nil {
		slog.Error("shop", "error", err)
		os.Exit(1)
	}
}

// serve takes orders and works for them until it is told to stop. Thumbnails are made by opscore worker, beside it.
func serve() error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	store, err := sqlite.Open("shop.db")
	if err != nil {
		return err
	}
	shop := &Shop{DB: store.DB(), Client: &opscore.Client{Store: store}, Bank: paper{}, Post: paper{}}
	if err := shop.Prepare(ctx); err != nil {
		return errors.Join(err, store.Close())
	}
	server := &http.Server{Addr: "127.0.0.1:8080", Handler: shop.API(), ReadHeaderTimeout: 5 * time.Second}
	done := make(chan error, 3)
	go func() { done <- (&opscore.Worker{Store: store, Handlers: shop.Handlers()}).Run(ctx) }()
	go func() { done <- (&opscore.Keeper{Store: store}).Run(ctx) }()
	go func() {
		if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
			done <- err
			return
		}
		done <- nil
	}()
	first := <-done // an end, or a failure
	stop()
	closing, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return errors.Join(first, server.Shutdown(closing), <-done, <-done, store.Close())
}

// API takes orders as JSON: POST /orders.
func (s *Shop) API() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /orders", func(w http.ResponseWriter, r *http.Request) {
		var o Order
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20)).Decode(&o); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		id, err := s.PlaceOrder(r.Context(), o)
		if err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
			return
		}
		w.WriteHeader(http.StatusAccepted)
		_ = json.NewEncoder(w).Encode(map[string]opscore.ID{"task": id}) // whoever does not listen has the task all the same
	})
	return mux
}

// paper is a bank and a post office that only write down what they are told.
type paper struct{}

// Charge implements [Bank].
func (paper) Charge(_ context.Context, key string, cents int) error {
	slog.Info("bank", "key", key, "cents", cents)
	return nil
}

// Deliver implements [Post].
func (paper) Deliver(_ context.Context, m Mail) error {
	slog.Info("post", "to", m.To, "text", m.Text)
	return nil
}
