package sqlite

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// prepareFile makes sure that path can be trusted with tasks: a regular file of a directory that not everybody
// may write to, on a local disk.
func prepareFile(path string) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := checkDir(dir); err != nil {
		return err
	}
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return err
		}
		return f.Close()
	}
	if err != nil {
		return err
	}
	return regular(path, info.Mode())
}

// checkFile makes sure of the same and creates nothing.
func checkFile(path string) error {
	if err := checkDir(filepath.Dir(path)); err != nil {
		return err
	}
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	return regular(path, info.Mode())
}

func checkDir(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if info.Mode().Perm()&0o002 != 0 {
		return fmt.Errorf("directory %s is writable by everybody: others could replace the file; choose another directory", dir)
	}
	if name, err := networkFS(dir); err != nil {
		return err
	} else if name != "" {
		return fmt.Errorf("directory %s is on a network file system (%s), where SQLite's locks do not hold; choose a local disk", dir, name)
	}
	return nil
}

// atRest reports whether all that is in a database is in its one file: who closes it as the last one removes the log, and who is done with a write outside WAL
// mode the journal.
func atRest(path string) bool {
	_, err := os.Lstat(path + "-wal")
	_, err2 := os.Lstat(path + "-journal")
	return errors.Is(err, fs.ErrNotExist) && errors.Is(err2, fs.ErrNotExist)
}

func regular(path string, m fs.FileMode) error {
	what := "something special"
	switch {
	case m.IsRegular():
		return nil
	case m.IsDir():
		what = "a directory"
	case m&fs.ModeSymlink != 0:
		what = "a symbolic link: give the path that it leads to"
	}
	return fmt.Errorf("%s is not a regular file but %s", path, what)
}
