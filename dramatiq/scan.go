package dramatiq

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"unicode/utf8"
)

// Limits of a body, so that reading one costs no more than its size.
const (
	MaxBody  = 1 << 20
	maxDepth = 64
	maxKeys  = 1024 // of one object
)

// scanner reads JSON as Python writes it: with NaN and Infinity, integers of any size, and strings that Go would not
// keep. It makes no values, only finds where they begin and end, so that they can be carried on byte for byte.
type scanner struct {
	data []byte
	at   int
}

// valid checks that data is one document within the limits.
func valid(data []byte) error {
	switch {
	case len(data) == 0:
		return errors.New("it is empty")
	case len(data) > MaxBody:
		return fmt.Errorf("%d bytes, the limit is %d", len(data), MaxBody)
	case !utf8.Valid(data):
		return errors.New("it is not valid UTF-8")
	case data[0] == 0xEF:
		return errors.New("it begins with a byte order mark")
	}
	s := scanner{data: data}
	s.space()
	if err := s.value(0); err != nil {
		return err
	}
	if s.space(); s.at < len(data) {
		return s.errorf("something follows the document")
	}
	return nil
}

func (s *scanner) errorf(format string, args ...any) error {
	return fmt.Errorf("byte %d: %s", s.at, fmt.Sprintf(format, args...))
}

func (s *scanner) space() {
	for s.at < len(s.data) {
		switch s.data[s.at] {
		case ' ', '\t', '\r', '\n':
			s.at++
		default:
			return
		}
	}
}

// is takes the byte b if it comes next.
func (s *scanner) is(b byte) bool {
	if s.at < len(s.data) && s.data[s.at] == b {
		s.at++
		return true
	}
	return false
}

func (s *scanner) value(depth int) error {
	if s.at == len(s.data) {
		return s.errorf("the document ends too early")
	}
	switch c := s.data[s.at]; {
	case c == '{' || c == '[':
		if depth == maxDepth {
			return s.errorf("nested more than %d deep", maxDepth)
		}
		_, err := s.list(c, depth+1, nil)
		return err
	case c == '"':
		return s.text()
	case c == '-' || '0' <= c && c <= '9':
		return s.number()
	}
	if slices.ContainsFunc([]string{"null", "true", "false", "NaN", "Infinity"}, s.word) {
		return nil
	}
	return s.errorf("no value of JSON begins like this")
}

func (s *scanner) word(word string) bool {
	if end := s.at + len(word); end <= len(s.data) && string(s.data[s.at:end]) == word {
		s.at = end
		return true
	}
	return false
}

// list reads an object or an array, tells each of its members to see, if it is given, and counts them. see returns false
// to hear of no more.
func (s *scanner) list(open byte, depth int, see func(name, value []byte) bool) (n int, err error) {
	s.at++
	shut := open + 2 // in ASCII ] and } are two behind their partners
	if s.space(); s.is(shut) {
		return 0, nil
	}
	for {
		var name []byte
		if open == '{' {
			if name, err = s.name(); err != nil {
				return n, err
			}
			if n == maxKeys {
				return n, s.errorf("more than %d keys in an object", maxKeys)
			}
		}
		begin := s.at
		if err := s.value(depth); err != nil {
			return n, err
		}
		n++
		if see != nil && !see(name, s.data[begin:s.at]) {
			see = nil
		}
		switch s.space(); {
		case s.is(','):
			s.space()
		case s.is(shut):
			return n, nil
		default:
			return n, s.errorf("a comma or %q is missing", shut)
		}
	}
}

func (s *scanner) name() ([]byte, error) {
	begin := s.at
	if s.at == len(s.data) || s.data[s.at] != '"' {
		return nil, s.errorf("a key in double quotes is missing")
	}
	if err := s.text(); err != nil {
		return nil, err
	}
	name := s.data[begin:s.at]
	if s.space(); !s.is(':') {
		return nil, s.errorf("a colon is missing")
	}
	s.space()
	return name, nil
}

func (s *scanner) text() error {
	for s.at++; s.at < len(s.data); s.at++ {
		switch c := s.data[s.at]; {
		case c == '"':
			s.at++
			return nil
		case c < ' ':
			return s.errorf("a control character in a string")
		case c == '\\':
			if err := s.escape(); err != nil {
				return err
			}
		}
	}
	return s.errorf("a string without an end")
}

// escape reads what follows a backslash, but for its last byte.
func (s *scanner) escape() error {
	if s.at++; s.at == len(s.data) {
		return s.errorf("a string without an end")
	}
	switch s.data[s.at] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return nil
	case 'u':
		for range 4 {
			s.at++
			if s.at == len(s.data) || !isHex(s.data[s.at]) {
				return s.errorf("four hexadecimal digits are needed after \\u")
			}
		}
		return nil
	}
	return s.errorf("there is no escape \\%c", s.data[s.at])
}

func isHex(c byte) bool { return '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'f' }

func (s *scanner) number() error {
	if s.is('-') && s.word("Infinity") {
		return nil
	}
	if whole := s.at; s.digits() == 0 || s.data[whole] == '0' && s.at > whole+1 {
		return s.errorf("not a number")
	}
	if s.is('.') && s.digits() == 0 {
		return s.errorf("not a number")
	}
	if s.is('e') || s.is('E') {
		if !s.is('+') {
			s.is('-')
		}
		if s.digits() == 0 {
			return s.errorf("not a number")
		}
	}
	return nil
}

func (s *scanner) digits() (n int) {
	for s.at < len(s.data) && '0' <= s.data[s.at] && s.data[s.at] <= '9' {
		s.at++
		n++
	}
	return n
}

// each calls see with the members of an object or an array that is known to be valid, in their order, until see returns
// false, and returns how many there are.
func each(list []byte, see func(name, value []byte) bool) int {
	s := scanner{data: list}
	n, err := s.list(list[0], 0, see)
	if err != nil {
		panic(err) // it was valid
	}
	return n
}

// nonFinite returns the first of the numbers in a valid value that JSON does not have, or "".
func nonFinite(value []byte) string {
	for i := 0; i < len(value); i++ {
		switch value[i] {
		case '"':
			for i++; value[i] != '"'; i++ {
				if value[i] == '\\' {
					i++
				}
			}
		case 'N':
			return "NaN"
		case 'I':
			if i > 0 && value[i-1] == '-' {
				return "-Infinity"
			}
			return "Infinity"
		}
	}
	return ""
}

// unquote returns what a valid string says; half a character in it is replaced.
func unquote(raw []byte) (text string) {
	if err := json.Unmarshal(raw, &text); err != nil {
		panic(err) // it was valid
	}
	return text
}

// quote writes a string as Python does: in ASCII.
func quote(dst []byte, text string) []byte {
	const hex = "0123456789abcdef"
	unit := func(u rune) { dst = append(dst, '\\', 'u', hex[u>>12&15], hex[u>>8&15], hex[u>>4&15], hex[u&15]) }
	dst = append(dst, '"')
	for _, r := range text {
		switch {
		case r == '"' || r == '\\':
			dst = append(dst, '\\', byte(r))
		case r >= ' ' && r < 0x7f:
			dst = append(dst, byte(r))
		case r > 0xffff:
			unit(0xd800 + (r-0x10000)>>10)
			unit(0xdc00 + (r-0x10000)&0x3ff)
		default:
			unit(r)
		}
	}
	return append(dst, '"')
}
