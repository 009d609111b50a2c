package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/opscore/opscore"
)

// hostile reports whether a terminal could take r as something other than a character in its place: control
// characters, line separators, and the controls that reorder text.
func hostile(r rune) bool {
	return unicode.IsControl(r) || r == '\u2028' || r == '\u2029' || unicode.Is(unicode.Bidi_Control, r)
}

// safe makes data fit for one line of a terminal.
func safe(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return hostile(r) || r == utf8.RuneError }) < 0 {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, width := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && width == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\t':
			b.WriteString(`\t`)
		case hostile(r) && r < 0x80:
			fmt.Fprintf(&b, `\x%02x`, r)
		case hostile(r):
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteRune(r)
		}
		i += width
	}
	return b.String()
}

// safeJSON escapes what a terminal could be fooled with in a JSON document; it stays the same document.
func safeJSON(doc []byte) []byte {
	var b []byte
	for i := 0; i < len(doc); {
		r, width := utf8.DecodeRune(doc[i:])
		switch {
		case r == '\n' || r == '\t' || r == '\r' || !hostile(r):
			b = append(b, doc[i:i+width]...)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			b = fmt.Appendf(b, `\u%04x\u%04x`, high, low)
		default:
			b = fmt.Appendf(b, `\u%04x`, r)
		}
		i += width
	}
	return b
}

// clip cuts s after limit bytes, at a character.
func clip(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	for limit > 0 && !utf8.RuneStart(s[limit]) {
		limit--
	}
	return s[:limit] + "…"
}

// printJSON prints v as a program wants it.
func (a *app) printJSON(v any) error {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("encode output: %w", err)
	}
	return a.print(string(safeJSON([]byte(b.String()))))
}

// printf prints one line of text whose arguments may be data.
func (a *app) printf(format string, args ...any) error {
	return a.print(safe(fmt.Sprintf(format, args...)) + "\n")
}

func (a *app) print(text string) error {
	if _, err := io.WriteString(a.stdout, text); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

// table prints rows under a header; every cell is escaped.
func (a *app) table(header []string, rows [][]string) error {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, row := range append([][]string{header}, rows...) {
		for i, cell := range row {
			row[i] = safe(cell)
		}
		fmt.Fprintln(w, strings.TrimRight(strings.Join(row, "\t"), "\t"))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	var lines strings.Builder
	for line := range strings.Lines(b.String()) {
		lines.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
	return a.print(lines.String())
}

// sheet is what is known of one thing, a line for each.
type sheet struct{ strings.Builder }

// field leaves out what is not known.
func (s *sheet) field(name, value string) {
	if value != "" && value != "-" {
		fmt.Fprintf(s, "%-12s %s\n", name, safe(value))
	}
}

// clock shows a moment in local time, without the date if it is today's.
func clock(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	t = t.Local()
	if now := time.Now(); t.Year() == now.Year() && t.YearDay() == now.YearDay() {
		return t.Format(time.TimeOnly)
	}
	return t.Format(time.DateTime)
}

// age shows how far a moment is from now.
func age(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	if d := time.Until(t); d > 0 {
		return "in " + short(d)
	}
	return short(time.Since(t)) + " ago"
}

func when(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return clock(t) + " (" + age(t) + ")"
}

// short shows a duration in its largest unit or two.
func short(d time.Duration) string {
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	case d < 2*time.Minute:
		return d.Round(time.Second).String()
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	return fmt.Sprintf("%dd", d/(24*time.Hour))
}

// goDuration shows a duration as Go reads it, without parts that are zero.
func goDuration(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

// plural shows a count with its noun.
func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// atMost shows how many attempts a task may have.
func atMost(attempts int) string {
	if attempts >= opscore.ForeverAttempts {
		return "any number"
	}
	return strconv.Itoa(attempts)
}
