package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unicode/utf8"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/postgres"
)

// readyFileWriter keeps the file that tells supervisors and scripts that the worker takes tasks.
type readyFileWriter struct {
	path             string     // "" for none
	database, schema string     // as the flags take them, without secrets
	wrote            opscore.ID // the worker that the file names, if it is as we left it
}

func parseReadyFile(text string) (string, error) {
	if text == "" {
		return "", errors.New("it is empty; give a file path")
	}
	return text, nil
}

// readyDoc is what the file holds.
type readyDoc struct {
	opscore.WorkerInfo
	Database string `json:"database"`
	Schema   string `json:"schema,omitempty"` // unless it is the default one
}

// check refuses a path that cannot become a ready file, before anything is started that would have to be stopped for it.
func (r *readyFileWriter) check() error {
	if r.path == "" {
		return nil
	}
	if _, err := r.holder(); err != nil {
		return err
	}
	f, err := r.temporary()
	if err == nil {
		err = errors.Join(f.Close(), os.Remove(f.Name()))
	}
	if err != nil {
		return usagef("--ready-file %q: cannot be written: %s", r.path, err)
	}
	return nil
}

// maxReady is more than a ready file has.
const maxReady = 1 << 20

// holder returns the worker that the file names, none if it is missing or empty, as mktemp leaves it. What has the name and is
// no ready file is somebody's: it is neither removed nor replaced.
func (r *readyFileWriter) holder() (worker opscore.ID, err error) {
	stat, err := os.Lstat(r.path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return worker, nil
	case err != nil:
		return worker, usagef("--ready-file %q: %s", r.path, err)
	case stat.Mode().IsRegular() && stat.Size() == 0:
		return worker, nil
	}
	if stat.Mode().IsRegular() && stat.Size() <= maxReady {
		var ready readyDoc
		text, err := os.ReadFile(r.path)
		if err == nil && json.Unmarshal(text, &ready) == nil && ready.ID != worker && ready.PID != 0 && ready.Database != "" {
			return ready.ID, nil
		}
	}
	return worker, usagef("--ready-file %q: exists, and is no ready file, which could be replaced: remove it, or give another path", r.path)
}

func (r *readyFileWriter) temporary() (*os.File, error) {
	return os.CreateTemp(filepath.Dir(r.path), "."+filepath.Base(r.path)+".*")
}

// write appears at once and whole.
func (r *readyFileWriter) write(info opscore.WorkerInfo) error {
	if r.path == "" {
		return nil
	}
	doc, err := r.doc(info)
	if err != nil {
		return fmt.Errorf("write ready file: %w", err)
	}
	f, err := r.temporary()
	if err != nil {
		return fmt.Errorf("write ready file: %w", err)
	}
	_, err = f.Write(doc)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), r.path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write ready file: %w", err), os.Remove(f.Name()))
	}
	r.wrote = info.ID
	return nil
}

// doc escapes no more than it must: a shell script finds a path in it as it is.
func (r *readyFileWriter) doc(info opscore.WorkerInfo) ([]byte, error) {
	if !utf8.ValidString(r.database) {
		return nil, fmt.Errorf("JSON cannot hold the name of the database %q: it is not UTF-8", r.database)
	}
	info.Live = true
	ready := readyDoc{WorkerInfo: info, Database: r.database}
	if r.schema != postgres.DefaultSchema {
		ready.Schema = r.schema
	}
	var doc bytes.Buffer
	enc := json.NewEncoder(&doc)
	enc.SetEscapeHTML(false)
	err := enc.Encode(ready)
	return doc.Bytes(), err
}

// clear removes what a killed worker has left, lest somebody take it for ours.
func (r *readyFileWriter) clear() error {
	if r.path == "" {
		return nil
	}
	if _, err := r.holder(); err != nil {
		return err
	}
	return r.unlink()
}

// remove leaves alone what another worker has written in the meantime.
func (r *readyFileWriter) remove() error {
	if r.wrote == (opscore.ID{}) {
		return nil
	}
	if worker, err := r.holder(); err != nil || worker != r.wrote {
		return nil //nolint:nilerr // it is not ours any more
	}
	return r.unlink()
}

func (r *readyFileWriter) unlink() error {
	if err := os.Remove(r.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove ready file: %w", err)
	}
	return nil
}
