package postgres

import (
	"strings"
	"testing"
)

func TestStatementsAreShownWithoutLiterals(t *testing.T) {
	for text, want := range map[string]string{
		"SELECT 1": "SELECT ?",
		"SELECT 'it''s', E'a\\'b', x'ff', N'n', \"a 'b\", a1": `SELECT ?, ?, ?, ?, "a 'b", a1`,
		"UPDATE t SET a=-1.5e3 WHERE b=$1 AND c1 = 0x1F":      "UPDATE t SET a=-? WHERE b=$1 AND c1 = ?",
		"SELECT $$hunter2$$, $tag$hunter2 $$ $tag$, $2":       "SELECT ?, ?, $2",
		"SELECT $x": "SELECT $x",
		"SELECT 1 -- hunter2\n, 2 /* hunter2 /* in */ out */;": "SELECT ? , ? ;",
		"ALTER ROLE a PASSWORD 'hunter2":                       "ALTER ROLE a PASSWORD ?", // cut off by the server
		"SELECT $a$hunter2":                                    "SELECT ?",
		"SELECT /* hunter2":                                    "SELECT",
		`SELECT "hunter`:                                       `SELECT "hunter`,
		`SELECT 'a\' , 'hunter2'`:                              "SELECT …", // ends here or there, depending on standard_conforming_strings
		"SELECT\t\x1b[31m\u202e a\n\n  FROM b":                 "SELECT [? a FROM b",
		"":                                                     "",
		"\xff\xfe'":                                            "?",
		"SELECT 'ä', ö, '漢字' FROM übung":                       "SELECT ?, ö, ? FROM übung",
		strings.Repeat("x", 500):                               strings.Repeat("x", 200) + "…",
		strings.Repeat("'hunter2' ", 500):                      strings.Repeat("? ", 100) + "…",
	} {
		if got := shownQuery(text); got != want {
			t.Errorf("%q:\n got %q\nwant %q", text, got, want)
		}
	}
}

func FuzzNoStatementIsTooMuch(f *testing.F) {
	f.Add("SELECT 'a' $b$ /* \\' ")
	f.Fuzz(func(t *testing.T, text string) {
		if got := []rune(shownQuery(text)); len(got) > maxShown+1 {
			t.Errorf("%q: %d characters", text, len(got))
		}
	})
}
