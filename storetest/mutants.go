package storetest

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Mutant is a store with one seeded defect, a change of its source text: its name, the file, the old text and the new.
type Mutant [4]string

// KillAll runs the tests of the package in the current directory whose names match run, once for each mutant, and fails if
// they pass: tests that do not notice a seeded defect would not notice the same defect in the next store. Each mutant is
// compiled anew, so with -short it does nothing.
func KillAll(t *testing.T, run string, mutants []Mutant) {
	t.Helper()
	if testing.Short() {
		t.Skip("compiles the package once per mutant")
	}
	for _, m := range mutants {
		name, file, before, after := m[0], m[1], m[2], m[3]
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			source, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if n := strings.Count(string(source), before); n != 1 {
				t.Fatalf("%s contains the text to change %d times: %s", file, n, before)
			}
			out, err := testWith(t, run, file, strings.Replace(string(source), before, after, 1))
			switch {
			case err == nil:
				t.Errorf("the suite did not notice")
			case !strings.Contains(out, "FAIL") || strings.Contains(out, "[build failed]"):
				t.Errorf("it was not the suite that failed:\n%s", out)
			}
		})
	}
}

// testWith runs the tests with one file's content replaced.
func testWith(t *testing.T, run, file, content string) (string, error) {
	t.Helper()
	dir := t.TempDir()
	changed := filepath.Join(dir, filepath.Base(file))
	if err := os.WriteFile(changed, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	original, err := filepath.Abs(file)
	if err != nil {
		t.Fatal(err)
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {original: changed}})
	if err != nil {
		t.Fatal(err)
	}
	list := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(list, overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "go", "test", "-overlay", list, "-vet=off", "-timeout=2m", "-failfast", "-count=1",
		"-run", run, "-rapid.checks=30", "-rapid.nofailfile", ".")
	out, err := cmd.CombinedOutput()
	return string(out), err
}
