package nodes

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
)

// epmd is a name server of our own for Erlang nodes: those that are to know each other share one. The system's is never asked.
type epmd struct {
	dir    *directory
	port   int
	server *process
}

// startEpmd starts one of these programs on a port that is still free when it asks for it.
func startEpmd(ctx context.Context, with erlang) (*epmd, error) {
	dir, err := newDirectory(ctx, "epmd", "")
	if err != nil {
		return nil, fmt.Errorf("start epmd: %w", err)
	}
	e := &epmd{dir: dir}
	for range 5 {
		if e.port, err = freePort(ctx); err != nil {
			break
		}
		if err = e.start(ctx, with); err == nil || !strings.Contains(err.Error(), "already a epmd running") {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start epmd: %w", err), e.close())
	}
	return e, nil
}

// start returns when it listens, which it says in its log if it is told twice to say what it does.
func (e *epmd) start(ctx context.Context, with erlang) (err error) {
	port := strconv.Itoa(e.port)
	e.server, err = e.dir.start(ctx, "KILL", filepath.Join(with.erts, "epmd"), "-address", "127.0.0.1", "-port", port, "-d", "-d")
	if err != nil {
		return err
	}
	return e.dir.ready(ctx, e.server, patience, func() bool { return strings.Contains(e.dir.log(), "entering the main select") })
}

func (e *epmd) close() error {
	var err error
	if e.server != nil {
		err = e.server.end()
	}
	return errors.Join(err, e.dir.close())
}
