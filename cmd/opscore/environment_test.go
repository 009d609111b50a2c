package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// readEnv reads a file of variables and shows what is ours in it.
func readEnv(t *testing.T, doc string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(path, []byte(doc), 0o600); err != nil {
		t.Fatal(err)
	}
	found, err := readEnvFile(path)
	if err != nil {
		return strings.ReplaceAll(err.Error(), path, "env")
	}
	var shown []string
	for _, v := range found {
		shown = append(shown, fmt.Sprintf("%s=%q from %s", v.name, v.text, strings.ReplaceAll(v.origin, path, "env")))
	}
	return strings.Join(shown, "; ")
}

func TestVariablesInAFile(t *testing.T) {
	t.Parallel()
	const key, from = "OPSCORE_A=", ` from env-file env:1`
	for doc, want := range map[string]string{
		key + "b":                                    `OPSCORE_A="b"` + from,
		"\uFEFF  export\tOPSCORE_A = b \r\n":         `OPSCORE_A="b"` + from,
		key + "a#b # c":                              `OPSCORE_A="a#b"` + from,
		key + "# c":                                  `OPSCORE_A=""` + from,
		key + "\nOPSCORE_B=c":                        `OPSCORE_A="" from env-file env:1; OPSCORE_B="c" from env-file env:2`,
		key + "a=b&c='d'":                            `OPSCORE_A="a=b&c='d'"` + from,
		key + `'$a "\n' # c`:                         `OPSCORE_A="$a \"\\n"` + from,
		key + `"a\n\t\"\\n\$x\q'#" `:                 `OPSCORE_A="a\n\t\"\\n$x\\q'#"` + from,
		key + "\"two\nlines\"\nOPSCORE_B='c'":        `OPSCORE_A="two\nlines" from env-file env:1; OPSCORE_B="c" from env-file env:3`,
		key + "pa$$5$":                               `OPSCORE_A="pa$$5$"` + from,
		"KEY='-----BEGIN\nOPSCORE_A=no\n'\nOTHER=$x": "",
		"DATABASE_URL=a\nRABBITMQ_URL=b":             `DATABASE_URL="a" from env-file env:1; RABBITMQ_URL="b" from env-file env:2`,
		"":                                           "",
		"\n# OPSCORE_A=b\n":                          "",
		"\nOPSCORE_A=${B}":                           "env:2: OPSCORE_A: the value seems to refer to another variable, which is not replaced; write it out, or put single quotes around a $ that is meant",
		key + `"a$b"`:                                "env:1: OPSCORE_A: the value seems to refer to another variable, which is not replaced; write it out, or put single quotes around a $ that is meant",
		key + "1\n\n" + key + "2":                    "env:3: OPSCORE_A is in line 1 already",
		key + "'b\nc":                                "env:1: OPSCORE_A: the quote is never closed",
		key + `"b\"`:                                 "env:1: OPSCORE_A: the quote is never closed",
		key + `"b"c`:                                 "env:1: OPSCORE_A: more follows the closing quote",
		"A=b\nOPSCORE_A":                             "env:2: NAME=VALUE is needed",
		"A=b\n1A=c":                                  "env:2: NAME=VALUE is needed",
	} {
		if got := readEnv(t, doc); got != want {
			t.Errorf("%q:\n got %s\nwant %s", doc, got, want)
		}
	}
}

// What cannot be read must not be repeated either: it may be a password.
func FuzzVariablesInAFile(f *testing.F) {
	f.Add("OPSCORE_A='b'\nexport B=\"\\n\"")
	f.Add("A=b # c\n\n'")
	f.Fuzz(func(t *testing.T, doc string) {
		p := envParser{path: "env", rest: doc, line: 1}
		for {
			rest := len(p.rest)
			_, more, err := p.next()
			if err != nil || !more {
				return
			}
			if len(p.rest) >= rest || p.began > 1+strings.Count(doc, "\n") {
				t.Fatalf("no progress in line %d of %q", p.began, doc)
			}
		}
	})
}
