package postgres

import (
	"slices"
	"strings"
	"unicode"
)

// maxShown is how much of a text of the server's is shown, in characters.
const maxShown = 200

// shownQuery is a statement on one line, shortened and without what may be secret: literals and comments. It ends where a string's end
// is not certain.
func shownQuery(text string) string {
	rest, shown := []rune(strings.ToValidUTF8(text, "")), []rune{}
	for len(rest) > 0 && len(shown) <= 2*maxShown {
		kind, n := nextToken(rest)
		switch kind {
		case plain:
			shown = append(shown, rest[:n]...)
		case blank:
			shown = append(shown, ' ')
		case literal:
			shown = append(shown, '?')
		case unsure:
			return oneLine(string(shown) + "…")
		}
		rest = rest[n:]
	}
	return oneLine(string(shown))
}

// oneLine makes a text fit for one line, and shortens it.
func oneLine(text string) string {
	printable := []rune(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			return -1
		}
		return r
	}, strings.Join(strings.Fields(text), " ")))
	if len(printable) > maxShown {
		return string(printable[:maxShown]) + "…"
	}
	return string(printable)
}

// token is what a piece of a statement is to us.
type token int

const (
	plain   token = iota
	blank         // white space, comments and what no terminal should get
	literal       // a string or a number
	unsure        // a string that ends here or there, depending on a setting
)

// nextToken says what q, which is not empty, begins with, and how long that is.
func nextToken(q []rune) (token, int) {
	inWord := func(r rune) bool { return r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r) }
	next := rune(0)
	if len(q) > 1 {
		next = q[1]
	}
	switch r := q[0]; {
	case r == '\'':
		return quoted(q, 1, false)
	case strings.ContainsRune("eEbBxXnN", r) && next == '\'':
		return quoted(q, 2, r == 'e' || r == 'E')
	case unicode.IsDigit(r):
		return literal, end(q, func(r rune) bool { return r != '.' && !inWord(r) })
	case inWord(r):
		return plain, end(q, func(r rune) bool { return !inWord(r) && r != '$' })
	case r == '"':
		return plain, min(end(q[1:], func(r rune) bool { return r == '"' })+2, len(q))
	case r == '$':
		return dollar(q)
	case r == '-' && next == '-':
		return blank, end(q, func(r rune) bool { return r == '\n' })
	case r == '/' && next == '*':
		return blank, comment(q)
	case unicode.IsSpace(r) || !unicode.IsPrint(r):
		return blank, 1
	}
	return plain, 1
}

// end is where the first character is that ends a token, or the end of the text.
func end(q []rune, ends func(rune) bool) int {
	if i := slices.IndexFunc(q, ends); i >= 0 {
		return i
	}
	return len(q)
}

// quoted is a string whose text starts at from. Whether a backslash escapes a quote depends on a setting of the session's, unless it is said.
func quoted(q []rune, from int, escapes bool) (token, int) {
	for i := from; i < len(q); i++ {
		last := i+1 == len(q)
		switch {
		case q[i] == '\\' && escapes:
			i++
		case q[i] == '\\' && !last && q[i+1] == '\'':
			return unsure, len(q)
		case q[i] == '\'' && !last && q[i+1] == '\'':
			i++
		case q[i] == '\'':
			return literal, i + 1
		}
	}
	return literal, len(q) // the server has cut it off
}

// dollar is a parameter, or a string in dollars.
func dollar(q []rune) (token, int) {
	n := 1 + end(q[1:], func(r rune) bool { return r != '_' && !unicode.IsLetter(r) && !unicode.IsDigit(r) })
	if n == len(q) || q[n] != '$' || n > 1 && unicode.IsDigit(q[1]) {
		return plain, n
	}
	tag := string(q[:n+1])
	if i := strings.Index(string(q[n+1:]), tag); i >= 0 {
		return literal, n + 1 + len([]rune(string(q[n+1:])[:i])) + n + 1
	}
	return literal, len(q)
}

// comment is how long the comment is that q begins with; others may be in it.
func comment(q []rune) int {
	depth := 0
	for i := 0; i+1 < len(q); i++ {
		switch string(q[i : i+2]) {
		case "/*":
			depth++
			i++
		case "*/":
			depth--
			i++
		}
		if depth == 0 {
			return i + 1
		}
	}
	return len(q)
}
