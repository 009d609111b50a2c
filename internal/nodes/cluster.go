package nodes

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// fill makes the server's data directory. initdb takes several times as long as all the rest of a start, so what it made is
// kept in the user's cache directory, if there is one, and copied from then on.
func (p *Postgres) fill(ctx context.Context) error {
	initdb := []string{
		filepath.Join(p.bin, "initdb"), "--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C",
		"--no-sync", "--no-instructions",
	}
	kept, err := p.cached(initdb)
	if err != nil {
		return err
	}
	if _, err := os.Stat(kept); err == nil {
		return p.dir.run(ctx, nil, "cp", "-a", kept, p.data())
	}
	if err := p.dir.run(ctx, p.dir.as, append(initdb, "--pgdata", p.data())...); err != nil || kept == "" {
		return err
	}
	return p.keep(ctx, kept)
}

// cached names the place in the cache of what that command makes with these programs as this user; it is empty if there is no
// cache.
func (p *Postgres) cached(initdb []string) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", nil //nolint:nilerr // a user without a home directory has no cache
	}
	program, err := os.Stat(filepath.Join(p.bin, "postgres"))
	if err != nil {
		return "", err
	}
	key := fmt.Sprint(initdb, p.dir.as, program.Size(), program.ModTime().UTC())
	return filepath.Join(cache, "opscore", fmt.Sprintf("postgres-%x", sha256.Sum256([]byte(key)))[:25]), nil
}

// keep puts a copy of the data directory into the cache. It gets its name when it is complete and on the disk; what a killed
// process began is overwritten. If another process is at it, that one does it.
func (p *Postgres) keep(ctx context.Context, kept string) error {
	if err := os.MkdirAll(filepath.Dir(kept), 0o700); err != nil {
		return err
	}
	lock, err := os.OpenFile(kept+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil
		}
		return err
	}
	if _, err := os.Stat(kept); err == nil {
		return nil
	}
	if err := os.RemoveAll(kept + ".new"); err != nil {
		return err
	}
	if err := p.dir.run(ctx, nil, "cp", "-a", p.data(), kept+".new"); err != nil {
		return err
	}
	if err := syncAll(kept + ".new"); err != nil { // or a crash of the machine might leave empty files under a good name
		return err
	}
	return os.Rename(kept+".new", kept)
}

// syncAll writes a tree of files to the disk.
func syncAll(dir string) error {
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		return errors.Join(f.Sync(), f.Close())
	})
}
