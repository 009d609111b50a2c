package main

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The page has a row for each setting, with the names and the default that the table of settings gives it.
func TestTheConfigurationPageHasEverySetting(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	var documented, want []string
	for _, row := range regexp.MustCompile("(?m)^\\| `([^`]*)` \\| `?([^`|]*?)`? \\| `([^`]*)` \\| ([^|]*) \\|").FindAllStringSubmatch(string(page), -1) {
		documented = append(documented, strings.Join(row[1:], " "))
	}
	root := new(app).rootCommand()
	worker, _, err := root.Find([]string{"worker"})
	if err != nil {
		t.Fatal(err)
	}
	explain, _, err := root.Find([]string{"explain"})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range settings() {
		flag := "--" + s.flag()
		if worker.Flag(s.flag()) == nil && explain.Flag(s.flag()) == nil {
			flag = "none" // a secret: everybody sees the flags of a process
		}
		row := fmt.Sprintf("%s %s %s ", s.key, flag, s.env)
		if s.def != "" {
			want = append(want, row+"`"+s.def+"`")
			continue
		}
		i := slices.IndexFunc(documented, func(d string) bool { return strings.HasPrefix(d, row) })
		if i < 0 {
			t.Fatalf("no row of the page begins with %s", row)
		}
		want = append(want, documented[i])
	}
	if !slices.Equal(documented, want) {
		t.Errorf("the page has\n%s\nwant\n%s", strings.Join(documented, "\n"), strings.Join(want, "\n"))
	}
}
