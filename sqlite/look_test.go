package sqlite_test

import (
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/sqlite"
)

// contents returns what is in a directory, file by file.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			found[path] = "a directory"
			return err
		}
		text, err := os.ReadFile(path)
		found[path] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// unchanged looks at path by look and checks that its directory is as it was.
func unchanged(t *testing.T, path string, look func()) {
	t.Helper()
	before := contents(t, filepath.Dir(path))
	look()
	after := contents(t, filepath.Dir(path))
	for file, text := range after {
		if old, was := before[file]; !was {
			t.Errorf("%s was made", file)
		} else if old != text {
			t.Errorf("%s was changed", file)
		}
	}
	if len(after) < len(before) {
		t.Errorf("of %d files %d are left", len(before), len(after))
	}
}

// executed makes a file with these statements, as another program does.
func executed(t *testing.T, path string, statements ...string) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range statements {
		exec(t, db, s)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

// made makes a file with one task, which nobody has open.
func made(t *testing.T, path string) opscore.ID {
	t.Helper()
	s, err := sqlite.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	sub, err := charge.Submit(t.Context(), &opscore.Client{Store: s}, order{1})
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	return sub.ID
}

func TestLookingReadsWithoutATrace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "opscore.db")
	id := made(t, path)
	unchanged(t, path, func() {
		s, err := sqlite.Look(path)
		if err != nil {
			t.Fatal(err)
		}
		client := &opscore.Client{Store: s}
		f, err := client.Facts(t.Context(), id)
		if err != nil || f.Task == nil || f.Task.State != opscore.Pending {
			t.Errorf("facts = %+v, %v", f, err)
		}
		if _, err := charge.Submit(t.Context(), client, order{2}); !errors.Is(err, opscore.ErrUnavailable) {
			t.Errorf("submit: %v", err)
		}
		if st, err := sqlite.Status(path); err != nil || st.Current != st.Target {
			t.Errorf("status = %+v, %v", st, err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestLookingDoesNotNeedADirectoryThatCanBeWritten(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "opscore.db")
	id := made(t, path)
	if err := os.Chmod(dir, 0o500); err != nil { // root may write all the same, and must not either
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Chmod(dir, 0o700) })
	unchanged(t, path, func() {
		s, err := sqlite.Look(path)
		if err != nil {
			t.Fatal(err)
		}
		_, err = (&opscore.Client{Store: s}).Get(t.Context(), id)
		if err := errors.Join(err, s.Close()); err != nil {
			t.Error(err)
		}
	})
}

func TestLookingSeesWhatOthersWriteMeanwhile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "opscore.db")
	worker := openAt(t, path)
	s, err := sqlite.Look(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		sub, err := charge.Submit(t.Context(), &opscore.Client{Store: worker}, order{i})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := (&opscore.Client{Store: s}).Get(t.Context(), sub.ID); err != nil {
			t.Error(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := charge.Submit(t.Context(), &opscore.Client{Store: worker}, order{4}); err != nil {
		t.Errorf("after the other was closed: %v", err)
	}
}

// TestLookingAtWhatADeadProcessLeft: its log is part of the data, and is not yet in the file.
func TestLookingAtWhatADeadProcessLeft(t *testing.T) {
	from := filepath.Join(t.TempDir(), "opscore.db")
	sub, err := charge.Submit(t.Context(), &opscore.Client{Store: openAt(t, from)}, order{1})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "opscore.db")
	for _, end := range []string{"", "-wal", "-shm"} {
		text, err := os.ReadFile(from + end)
		if err := errors.Join(err, os.WriteFile(path+end, text, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	files := contents(t, filepath.Dir(path))
	s, err := sqlite.Look(path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = (&opscore.Client{Store: s}).Get(t.Context(), sub.ID)
	if err := errors.Join(err, s.Close()); err != nil {
		t.Error(err)
	}
	after := contents(t, filepath.Dir(path)) // the -shm is no data: whoever comes first makes it anew
	if len(after) != len(files) || after[path] != files[path] || after[path+"-wal"] != files[path+"-wal"] {
		t.Errorf("the file or its log was changed")
	}
}

func TestWhatIsReadAtRestIsNotMixedWithWhatIsWrittenMeanwhile(t *testing.T) {
	for what, change := range map[string]func(path string){
		"open":         func(path string) { openAt(t, path) },
		"closed again": func(path string) { made(t, path) },
		"removed":      func(path string) { _ = os.Remove(path) },
	} {
		path := filepath.Join(t.TempDir(), "opscore.db")
		id := made(t, path)
		s, err := sqlite.Look(path)
		if err != nil {
			t.Fatal(err)
		}
		change(path)
		if _, err := (&opscore.Client{Store: s}).Get(t.Context(), id); !errors.Is(err, opscore.ErrUnavailable) {
			t.Errorf("%s: %v", what, err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// strangers are files that are there and cannot be looked into, what the store says of each, and how far the inspector came.
var strangers = []struct {
	name    string
	make    func(t *testing.T, path string)
	says    string
	reached opscore.DatabaseStep
	schema  int64
}{
	{"of an older version", func(t *testing.T, path string) { older(t, path) }, "has schema version 2, and this binary wants", opscore.DatabaseOpen, 2},
	{"of a newer version", func(t *testing.T, path string) {
		made(t, path)
		executed(t, path, "INSERT INTO opscore_version (version_id, is_applied) VALUES (99, 1)")
	}, "has schema version 99, but", opscore.DatabaseOpen, 99},
	{"of another program", func(t *testing.T, path string) { executed(t, path, "CREATE TABLE song (name)") }, "has no tables of opscore", opscore.DatabaseOpen, 0},
	{"of another program, in WAL mode", func(t *testing.T, path string) {
		executed(t, path, "PRAGMA journal_mode = WAL", "CREATE TABLE song (name)")
	}, "has no tables of opscore", opscore.DatabaseOpen, 0},
	{"empty", func(t *testing.T, path string) { write(t, path, "") }, "has no tables of opscore", opscore.DatabaseOpen, 0},
	{"no database", func(t *testing.T, path string) { write(t, path, strings.Repeat("text ", 1000)) }, "not a SQLite database", opscore.DatabaseRefused, 0},
	{"a directory", func(t *testing.T, path string) {
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
	}, "not a regular file but a directory", opscore.DatabaseRefused, 0},
	{"where everybody may write", func(t *testing.T, path string) {
		made(t, path)
		if err := os.Chmod(filepath.Dir(path), 0o777); err != nil {
			t.Fatal(err)
		}
	}, "writable by everybody", opscore.DatabaseRefused, 0},
	{"not there", func(*testing.T, string) {}, "no such file", opscore.DatabaseNone, 0},
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// older makes a file as the binary before this schema left it.
func older(t *testing.T, path string) {
	t.Helper()
	text, err := sqlite.MigrationSQL(0)
	if err != nil {
		t.Fatal(err)
	}
	before, _, _ := strings.Cut(text, "\n-- 00003_")
	executed(t, path, "PRAGMA journal_mode = WAL", before+"COMMIT;")
}

func TestAFileOfOthersIsNotLookedIntoAndNotChanged(t *testing.T) {
	for _, tc := range strangers {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "dir", "some.db")
			if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			tc.make(t, path)
			unchanged(t, path, func() {
				s, err := sqlite.Look(path)
				if err == nil {
					_ = s.Close()
				}
				if !errors.Is(err, opscore.ErrUnavailable) || !strings.Contains(fmt.Sprint(err), tc.says) {
					t.Errorf("error = %v, want it to say %q", err, tc.says)
				}
				f, err := (sqlite.Inspector{Path: path}).Gather(t.Context(), &opscore.Facts{})
				d := f.Database
				if d.Reached != tc.reached || d.Schema != tc.schema || (err == nil) != (tc.reached == opscore.DatabaseOpen) || (d.SchemaWanted > 0) != (err == nil) {
					t.Errorf("facts = %+v, %v", d, err)
				}
				if err != nil && !strings.Contains(d.Err, tc.says) {
					t.Errorf("inspector: %s, want it to say %q", d.Err, tc.says)
				}
			})
		})
	}
}

// TestTheInspectorDoesNotWaitForAFileThatIsLockedForReaders: what it knows of locks would come too late.
func TestTheInspectorDoesNotWaitForAFileThatIsLockedForReaders(t *testing.T) {
	path := filepath.Join(t.TempDir(), "some.db")
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	db.SetMaxOpenConns(1)
	for _, statement := range []string{"PRAGMA locking_mode = EXCLUSIVE", "PRAGMA journal_mode = WAL", "CREATE TABLE song (name)"} {
		exec(t, db, statement)
	}
	began := time.Now()
	f, err := (sqlite.Inspector{Path: path}).Gather(t.Context(), &opscore.Facts{})
	if d := f.Database; err != nil || d.Reached != opscore.DatabaseOpen || d.SchemaWanted != 0 || time.Since(began) > time.Second {
		t.Errorf("facts = %+v, %v after %s", d, err, time.Since(began))
	}
}
