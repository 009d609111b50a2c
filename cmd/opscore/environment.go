package main

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/agnivade/levenshtein"
	"github.com/spf13/cobra"
)

// variable is one of the environment, or of the file that --env-file names.
type variable struct{ name, text, origin string }

// environment is where variables come from: the process's own win over those of a file.
type environment struct {
	own, file []variable
	read      bool // the file
}

// readEnvironment reads the process's environment and the file of --env-file. What is in the file stays in this process.
func readEnvironment(cmd *cobra.Command) (environment, error) {
	var e environment
	for _, kv := range os.Environ() {
		name, text, _ := strings.Cut(kv, "=")
		e.own = append(e.own, variable{name, text, "env " + name})
	}
	f := cmd.Flags().Lookup("env-file")
	if !f.Changed {
		return e, nil
	}
	var err error
	e.file, err = readEnvFile(f.Value.String())
	e.read = true
	return e, err
}

// all returns the values of a variable, the one that counts first.
func (e environment) all(name string) (found []variable) {
	for _, v := range slices.Concat(e.own, e.file) {
		if v.name == name {
			found = append(found, v)
		}
	}
	return found
}

func (e environment) has(name string) bool { return len(e.all(name)) > 0 }

// check refuses variables that nearly are ours, and names others that look like it.
func (e environment) check() (warning string, err error) {
	var known, similar, foreign []string
	for _, s := range settings() {
		known = append(known, s.env)
		similar = append(similar, "OPSCORE_"+strings.ToUpper(strings.ReplaceAll(s.key, ".", "_")))
	}
	known = append(known, envConfig)
	ours := append(slices.Clone(known), envTaskID, envAttempt, envActor) // the latter are set for commands, by us
	for _, v := range slices.Concat(e.own, e.file) {
		if upper := strings.ToUpper(v.name); upper != v.name && slices.Contains(known, upper) {
			return "", v.unknown(upper)
		}
		if !strings.HasPrefix(v.name, "OPSCORE_") || slices.Contains(ours, v.name) {
			continue
		}
		for i, k := range known {
			if levenshtein.ComputeDistance(v.name, k) <= 2 || i < len(similar) && v.name == similar[i] {
				return "", v.unknown(k)
			}
		}
		foreign = append(foreign, v.name)
	}
	if len(foreign) > 0 {
		warning = "not settings of opscore, ignored: " + strings.Join(foreign, ", ")
	}
	return warning, nil
}

func (v variable) unknown(meant string) error {
	if where, ok := strings.CutPrefix(v.origin, "env-file "); ok {
		return usagef("%s: variable %s is not known; did you mean %q?", where, v.name, meant)
	}
	return usagef("environment variable %s is not known; did you mean %q?", v.name, meant)
}

var testSwitch = regexp.MustCompile(`^(.*_)?(TESTING|TEST_MODE|UNITTESTING)$`)

// testSwitches names the variables that make other programs pretend. They must not make a worker pretend.
func (e environment) testSwitches() (names []string) {
	for _, v := range e.own {
		if v.text != "" && testSwitch.MatchString(v.name) && !strings.HasPrefix(v.name, "OPSCORE_") {
			names = append(names, v.name)
		}
	}
	slices.Sort(names)
	return names
}

var assignsOurs = regexp.MustCompile(`(?m)^[ \t]*(?:export[ \t]+)?(OPSCORE_[A-Z0-9_]+)[ \t]*=`)

// unreadFile says that the current directory has a .env which would change something if it were read.
func (e environment) unreadFile() string {
	const usual = ".env"
	if info, err := os.Stat(usual); err != nil || !info.Mode().IsRegular() || e.read {
		return ""
	}
	doc, _, err := readLimited(usual)
	if err != nil {
		return ""
	}
	var names []string
	for _, m := range assignsOurs.FindAllSubmatch(doc, -1) {
		if name := string(m[1]); !e.has(name) && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return ""
	}
	return fmt.Sprintf("%s is not read, but sets %s; to read it: --env-file %s", usual, strings.Join(names, ", "), usual)
}

// readEnvFile returns the variables of ours in a file of lines NAME=VALUE.
func readEnvFile(path string) ([]variable, error) {
	if path == "" {
		return nil, usagef("env-file (flag --env-file): it is empty; give a file path")
	}
	doc, _, err := readLimited(path)
	if err != nil {
		return nil, usagef("read variables: %s", err)
	}
	p := envParser{path: path, rest: strings.TrimPrefix(string(doc), "\uFEFF"), line: 1}
	lines := map[string]int{} // of the names that were there already
	for {
		v, more, err := p.next()
		if err != nil || !more {
			return p.found, err
		}
		if !strings.HasPrefix(strings.ToUpper(v.name), "OPSCORE_") && !slices.Contains(fallbacks(), v.name) {
			continue
		}
		if lines[v.name] > 0 {
			return nil, p.errorf("%s is in line %d already", v.name, lines[v.name])
		}
		if p.refers {
			return nil, p.errorf("%s: the value seems to refer to another variable, which is not replaced; write it out, or put single quotes around a $ that is meant", v.name)
		}
		lines[v.name] = p.began
		p.found = append(p.found, v)
	}
}

// envParser reads NAME=VALUE lines as shells and other programs do. It replaces no references to variables: programs disagree
// about them, and a password may hold a $.
type envParser struct {
	path  string
	rest  string
	line  int
	found []variable

	began  int  // line of the variable
	refers bool // its value holds what looks like a reference
}

func (p *envParser) errorf(format string, args ...any) error {
	return usagef("%s:%d: %s", p.path, p.began, fmt.Sprintf(format, args...))
}

var (
	envBlank  = regexp.MustCompile(`^[ \t\r]*(#[^\n]*)?(\n|$)`)
	envAssign = regexp.MustCompile(`^[ \t]*(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_.]*)[ \t]*=[ \t]*`)
	envSingle = regexp.MustCompile(`^'([^']*)'`)
	envDouble = regexp.MustCompile(`^"((?:[^"\\]|\\(?s:.))*)"`)
	envPlain  = regexp.MustCompile(`^[^\n]*`)
	envRemark = regexp.MustCompile(`(^|[ \t]+)#.*$`)
	envEscape = regexp.MustCompile(`\\(?s:.)`)
	envDollar = regexp.MustCompile(`\$[A-Za-z_{(]`)
)

// next returns the next variable, of whoever it is.
func (p *envParser) next() (v variable, more bool, err error) {
	for p.rest != "" && p.skip(envBlank) != nil {
	}
	if p.began, p.refers = p.line, false; p.rest == "" {
		return variable{}, false, nil
	}
	m := p.skip(envAssign)
	if m == nil {
		return variable{}, false, p.errorf("NAME=VALUE is needed")
	}
	v = variable{m[1], "", fmt.Sprintf("env-file %s:%d", p.path, p.line)}
	quoted := true
	if single := p.skip(envSingle); single != nil {
		v.text = single[1]
	} else if double := p.skip(envDouble); double != nil {
		v.text = p.unescape(double[1])
	} else if strings.HasPrefix(p.rest, "'") || strings.HasPrefix(p.rest, `"`) {
		return variable{}, false, p.errorf("%s: the quote is never closed", v.name)
	} else {
		v.text, quoted = strings.TrimSpace(envRemark.ReplaceAllString(p.skip(envPlain)[0], "")), false
		p.refers = envDollar.MatchString(v.text)
	}
	if quoted && p.skip(envBlank) == nil {
		return variable{}, false, p.errorf("%s: more follows the closing quote", v.name)
	}
	return v, true, nil
}

// skip goes on behind what matches, and returns it.
func (p *envParser) skip(what *regexp.Regexp) []string {
	m := what.FindStringSubmatch(p.rest)
	if m != nil {
		p.rest = p.rest[len(m[0]):]
		p.line += strings.Count(m[0], "\n")
	}
	return m
}

// unescape reads what is between double quotes.
func (p *envParser) unescape(text string) string {
	p.refers = envDollar.MatchString(envEscape.ReplaceAllString(text, ""))
	known := strings.NewReplacer(`\n`, "\n", `\r`, "\r", `\t`, "\t", `\"`, `"`, `\\`, `\`, `\$`, "$", "\\`", "`")
	return envEscape.ReplaceAllStringFunc(text, known.Replace)
}
