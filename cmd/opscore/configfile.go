package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/dramatiq"
)

const maxConfigBytes = 1 << 20

// decodeFile reads opscore.yaml into c and returns the settings it gives. Whatever it holds that is not known is
// an error with its line: a mistyped key must not become a default.
func decodeFile(c *config, path string) (map[string]candidate, error) {
	doc, mode, err := readLimited(path)
	if err != nil {
		return nil, usagef("read configuration: %s", err)
	}
	dec := yaml.NewDecoder(bytes.NewReader(doc))
	var root, more yaml.Node
	if err := dec.Decode(&root); errors.Is(err, io.EOF) {
		return nil, nil // empty
	} else if err != nil {
		return nil, syntaxError(path, err)
	}
	d := &decoder{path: path, dir: filepath.Dir(c.file)}
	if err := dec.Decode(&more); err == nil {
		return nil, d.errorf(&more, "a second document: only one is accepted")
	} else if !errors.Is(err, io.EOF) {
		return nil, syntaxError(path, err)
	}
	given := map[string]candidate{}
	top := fields{
		"retention": func(n *yaml.Node) error { return d.retention(n, &c.retention) },
		"actors":    func(n *yaml.Node) error { return d.actors(n, c) },
	}
	d.settings(top, given, map[string]fields{"dramatiq": d.dramatiqFields(c, given)})
	if err := d.object(root.Content[0], "the file", top); err != nil {
		return nil, err
	}
	if len(c.actors) > 0 && mode.Perm()&0o002 != 0 {
		return nil, usagef("%s declares commands and is writable by everybody: others could run commands as you; chmod o-w it", path)
	}
	return given, nil
}

func readLimited(path string) ([]byte, os.FileMode, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = f.Close() }() // only read
	info, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	doc, err := io.ReadAll(io.LimitReader(f, maxConfigBytes+1))
	if err == nil && len(doc) > maxConfigBytes {
		err = fmt.Errorf("%s is larger than %d bytes", path, maxConfigBytes)
	}
	return doc, info.Mode(), err
}

var yamlLine = regexp.MustCompile(`^yaml: line (\d+): `)

func syntaxError(path string, err error) error {
	text := err.Error()
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		return usagef("%s:%s: %s", path, m[1], text[len(m[0]):])
	}
	return usagef("%s: %s", path, strings.TrimPrefix(text, "yaml: "))
}

// decoder turns nodes of one file into values, and mistakes into errors that name the line.
type decoder struct{ path, dir string }

// fields maps the accepted keys of an object to what reads their values.
type fields map[string]func(*yaml.Node) error

func (d *decoder) errorf(n *yaml.Node, format string, args ...any) error {
	return usagef("%s:%d: %s", d.path, n.Line, fmt.Sprintf(format, args...))
}

func (d *decoder) object(n *yaml.Node, where string, accepted fields) error {
	return d.entries(n, where, func(key string, k, v *yaml.Node) error {
		read, ok := accepted[key]
		if !ok {
			names := slices.Sorted(maps.Keys(accepted))
			return d.errorf(k, "unknown key %q in %s; accepted: %s%s", key, where, strings.Join(names, ", "), didYouMean(key, names))
		}
		return read(v)
	})
}

// entries calls f for each entry of a mapping, in the file's order.
func (d *decoder) entries(n *yaml.Node, where string, f func(key string, k, v *yaml.Node) error) error {
	n = resolve(n)
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return nil // "actors:" with nothing below it
	}
	if n.Kind != yaml.MappingNode {
		return d.errorf(n, "%s: keys with values are needed, not %s", where, kindOf(n))
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if k.Kind != yaml.ScalarNode {
			return d.errorf(k, "%s: a key must be text", where)
		}
		if seen[k.Value] {
			return d.errorf(k, "key %q is twice in %s", k.Value, where)
		}
		seen[k.Value] = true
		if err := f(k.Value, k, v); err != nil {
			return err
		}
	}
	return nil
}

func resolve(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}

func kindOf(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "keys with values"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.Tag == "!!null":
		return "nothing"
	}
	return strconv.Quote(redactDatabase(n.Value))
}

// scalar returns a plain value as it is written.
func (d *decoder) scalar(n *yaml.Node, key string) (string, error) {
	n = resolve(n)
	if n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
		return "", d.errorf(n, "%s: one value is needed, not %s", key, kindOf(n))
	}
	return n.Value, nil
}

func (d *decoder) list(n *yaml.Node, key string) ([]string, error) {
	n = resolve(n)
	if n.Kind != yaml.SequenceNode {
		return nil, d.errorf(n, "%s: a list is needed, such as [a, b], not %s", key, kindOf(n))
	}
	texts := []string{}
	for _, item := range n.Content {
		text, err := d.scalar(item, key)
		if err != nil {
			return nil, err
		}
		texts = append(texts, text)
	}
	return texts, nil
}

// settings adds to the accepted keys those of the table of settings. What they read goes into given.
// more are other keys of their objects, or other ways to read them.
func (d *decoder) settings(top fields, given map[string]candidate, more map[string]fields) {
	groups := map[string]fields{}
	for _, s := range settings() {
		at, name := top, s.key
		if group, rest, nested := strings.Cut(s.key, "."); nested {
			if groups[group] == nil {
				groups[group] = fields{}
				top[group] = func(n *yaml.Node) error { return d.object(n, group, groups[group]) }
			}
			at, name = groups[group], rest
		}
		at[name] = func(n *yaml.Node) (err error) {
			given[s.key], err = d.setting(s, n)
			return err
		}
	}
	for group, others := range more {
		maps.Copy(groups[group], others)
	}
}

// setting reads and checks one setting of the table, whether or not a flag or variable wins over it.
func (d *decoder) setting(s setting, n *yaml.Node) (candidate, error) {
	var raw []string
	var err error
	if s.list {
		raw, err = d.list(n, s.key)
	} else {
		var text string
		text, err = d.scalar(n, s.key)
		raw = []string{text}
	}
	if err != nil {
		return candidate{}, err
	}
	if err := s.parse(&config{}, raw); err != nil {
		return candidate{}, d.errorf(n, "%s %q: %s", s.key, s.shown(raw), err)
	}
	if s.key == "database" || s.key == "log_file" {
		raw[0] = d.besideFile(raw[0])
	}
	return candidate{raw: raw, origin: "file " + d.path}, nil
}

// besideFile resolves a relative path against the file's directory: it must not matter where a worker is started.
func (d *decoder) besideFile(path string) string {
	path = strings.TrimPrefix(path, "sqlite:")
	if filepath.IsAbs(path) || strings.HasPrefix(path, "~/") || redactDatabase(path) != path || strings.HasPrefix(path, "file:") || path == ":memory:" {
		return path
	}
	return filepath.Join(d.dir, path)
}

// parsed makes a field from a parser of text.
func parsed[T any](d *decoder, key string, into *T, parse func(string) (T, error)) func(*yaml.Node) error {
	return func(n *yaml.Node) error {
		text, err := d.scalar(n, key)
		if err != nil {
			return err
		}
		if *into, err = parse(text); err != nil {
			return d.errorf(n, "%s %q: %s", key, text, err)
		}
		return nil
	}
}

func (d *decoder) retention(n *yaml.Node, r *opscore.Retention) error {
	return d.object(n, "retention", fields{
		"default": func(n *yaml.Node) error { return d.keep(n, "retention.default", &r.Default) },
		"queues": func(n *yaml.Node) error {
			r.Queues = map[string]opscore.Keep{}
			return d.entries(n, "retention.queues", func(queue string, k, v *yaml.Node) error {
				if err := opscore.ValidName("queue", queue); err != nil {
					return d.errorf(k, "%s", err)
				}
				var keep opscore.Keep
				err := d.keep(v, "retention.queues."+queue, &keep)
				r.Queues[queue] = keep
				return err
			})
		},
	})
}

func (d *decoder) keep(n *yaml.Node, where string, k *opscore.Keep) error {
	field := func(key string, into *time.Duration) func(*yaml.Node) error {
		return parsed(d, where+"."+key, into, parseRetention)
	}
	return d.object(n, where, fields{
		"completed": field("completed", &k.Completed),
		"failed":    field("failed", &k.Failed),
		"cancelled": field("cancelled", &k.Cancelled),
	})
}

func (d *decoder) actors(n *yaml.Node, c *config) error {
	return d.entries(n, "actors", func(name string, k, v *yaml.Node) error {
		if err := opscore.ValidName("actor", name); err != nil {
			return d.errorf(k, "%s", err)
		}
		if name == dramatiq.SendActor {
			return d.errorf(k, "actor %s: the name is reserved for what sends messages to Dramatiq; choose another", name)
		}
		if slices.Contains(demoActors(), name) {
			return d.errorf(k, "actor %s: the name belongs to a demo actor of run and dev; choose another", name)
		}
		actor := commandActor{name: name, where: fmt.Sprintf("%s:%d", d.path, k.Line), dir: d.dir}
		if err := d.actor(v, &actor); err != nil {
			return err
		}
		if len(actor.argv) == 0 {
			return d.errorf(k, "actor %s has no command; give one, such as command: [convert, in.png, out.png]", name)
		}
		c.actors = append(c.actors, actor)
		return nil
	})
}

func (d *decoder) actor(n *yaml.Node, a *commandActor) error {
	where := "actor " + a.name
	period := func(key string, into *time.Duration) func(*yaml.Node) error {
		return parsed(d, where+": "+key, into, parsePeriod)
	}
	return d.object(n, where, fields{
		"command":       func(n *yaml.Node) error { return d.command(n, where, a) },
		"queue":         parsed(d, where+": queue", &a.queue, parseQueue),
		"priority":      parsed(d, where+": priority", &a.priority, parsePriority),
		"after":         parsed(d, where+": after", &a.after, parseDuration),
		"expires_after": period("expires_after", &a.expiresAfter),
		"timeout":       period("timeout", &a.timeout),
		"max_attempts":  parsed(d, where+": max_attempts", &a.maxAttempts, parseCount),
		"labels":        func(n *yaml.Node) error { return d.labels(n, where, a) },
		"retry":         func(n *yaml.Node) error { return d.retry(n, where+": retry", &a.retry) },
		"env":           func(n *yaml.Node) error { return d.env(n, where, a) },
		"dir": func(n *yaml.Node) error {
			dir, err := d.scalar(n, where+": dir")
			if !filepath.IsAbs(dir) {
				dir = filepath.Join(d.dir, dir)
			}
			a.dir = dir
			return err
		},
	})
}

func (d *decoder) command(n *yaml.Node, where string, a *commandActor) (err error) {
	if a.argv, err = d.list(n, where+": command"); err != nil {
		return err
	}
	if len(a.argv) == 0 || a.argv[0] == "" {
		return d.errorf(n, "%s: command is empty; give a list of a program and its arguments", where)
	}
	for _, arg := range a.argv {
		if strings.ContainsRune(arg, 0) {
			return d.errorf(n, "%s: command: an argument holds a NUL character", where)
		}
	}
	return nil
}

func (d *decoder) labels(n *yaml.Node, where string, a *commandActor) error {
	a.labels = map[string]string{}
	return d.entries(n, where+": labels", func(key string, k, v *yaml.Node) error {
		text, err := d.scalar(v, where+": label "+key)
		if err != nil {
			return err
		}
		if err := validLabel(key, text); err != nil {
			return d.errorf(k, "%s: %s", where, err)
		}
		a.labels[key] = text
		return nil
	})
}

var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

func (d *decoder) env(n *yaml.Node, where string, a *commandActor) (err error) {
	if a.env, err = d.list(n, where+": env"); err != nil {
		return err
	}
	for _, name := range a.env {
		if !envName.MatchString(name) {
			return d.errorf(n, "%s: env %q: names of variables are needed, without values; those the worker has are passed on", where, name)
		}
	}
	return nil
}

func (d *decoder) retry(n *yaml.Node, where string, b *opscore.Backoff) error {
	return d.object(n, where, fields{
		"base": parsed(d, where+".base", &b.Base, parsePeriod),
		"max":  parsed(d, where+".max", &b.Max, parsePeriod),
		"factor": parsed(d, where+".factor", &b.Factor, func(text string) (float64, error) {
			return parseNumber(text, 1, 1000)
		}),
		"jitter": parsed(d, where+".jitter", &b.Jitter, func(text string) (float64, error) {
			j, err := parseNumber(text, 0, 1)
			return max(j, math.SmallestNonzeroFloat64), err // zero would mean the default
		}),
	})
}

func parseNumber(text string, least, most float64) (float64, error) {
	x, err := strconv.ParseFloat(text, 64)
	if err != nil || !(least <= x && x <= most) {
		return 0, fmt.Errorf("a number between %g and %g is needed", least, most)
	}
	return x, nil
}

func parseQueue(text string) (string, error) { return text, opscore.ValidName("queue", text) }

func parsePriority(text string) (int, error) {
	p, err := strconv.Atoi(text)
	if err != nil || p < -opscore.MaxPriority || p > opscore.MaxPriority {
		return 0, fmt.Errorf("a whole number between -%d and %d is needed", opscore.MaxPriority, opscore.MaxPriority)
	}
	return p, nil
}

// validLabel checks what the runtime would refuse later, without the line.
func validLabel(key, text string) error {
	if err := opscore.ValidName("label", key); err != nil {
		return err
	}
	if len(text) > opscore.MaxLabelValue {
		return fmt.Errorf("label %s: value has %d bytes, the limit is %d", key, len(text), opscore.MaxLabelValue)
	}
	return nil
}
