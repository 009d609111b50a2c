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
	path             string // "" for none
	database, schema string // as the flags take them, without secrets
}

// readyDoc is what the file holds.
type readyDoc struct {
	opscore.WorkerInfo
	Database string `json:"database"`
	Schema   string `json:"schema,omitempty"` // unless it is the default one
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
	f, err := os.CreateTemp(filepath.Dir(r.path), "."+filepath.Base(r.path)+".*")
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

func (r *readyFileWriter) remove() error {
	if r.path == "" {
		return nil
	}
	if err := os.Remove(r.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove ready file: %w", err)
	}
	return nil
}
