// Package dramatiq takes over the queues of Python's Dramatiq, and sends messages to its actors.
package dramatiq

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/google/uuid"

	"github.com/opscore/opscore"
)

// Message is one message of Dramatiq. Args, Kwargs and Options are as they came, byte for byte: what Python wrote there, Go need not
// be able to hold. They may contain NaN and Infinity, which are not JSON; nil means none.
type Message struct {
	Queue     string // what the message says; the broker's queue is what counts
	Actor     string
	Args      []byte    // an array
	Kwargs    []byte    // an object
	Options   []byte    // an object
	ID        string    // "" if the message has none
	Timestamp time.Time // when it was made first; zero if it does not say
	// Notes are what is strange about the message and does no harm.
	Notes []string
}

var (
	emptyArray  = []byte("[]")
	emptyObject = []byte("{}")
)

// fields are the keys of a message. Python knows no others, and writes each once.
var fields = []string{"queue_name", "actor_name", "args", "kwargs", "options", "message_id", "message_timestamp"}

// Decode reads a body. It accepts what Dramatiq accepts, with four exceptions: a key that is there twice is refused, for two
// readers could take two different messages from such a body, and no Python writes one; so are args that are no array, and kwargs and options that
// are no objects, on which Dramatiq itself stumbles later.
func Decode(body []byte) (Message, error) {
	m, err := decode(body)
	if err != nil {
		return Message{}, fmt.Errorf("decode message: %w", err)
	}
	return m, nil
}

func decode(body []byte) (m Message, err error) {
	if err := valid(body); err != nil {
		return m, err
	}
	body = bytes.TrimLeft(body, " \t\r\n")
	if body[0] != '{' {
		return m, fmt.Errorf("it is %s, not an object", kind(body))
	}
	values, err := take(body)
	if err != nil {
		return m, err
	}
	for _, key := range fields[:5] {
		if values[key] == nil {
			return m, fmt.Errorf("%s is missing", key)
		}
	}
	for _, key := range fields[1:5] {
		if err := shaped(key, values[key]); err != nil {
			return m, err
		}
	}
	if twice := repeated(values["options"]); twice != "" {
		return m, fmt.Errorf("option %s is there twice", twice)
	}
	m.Args, m.Kwargs, m.Options = values["args"], values["kwargs"], values["options"]
	m.Actor = unquote(values["actor_name"])
	m.identify(values)
	return m, nil
}

// take returns the values of a message by their keys.
func take(object []byte) (values map[string][]byte, err error) {
	values = make(map[string][]byte, len(fields))
	each(object, func(name, value []byte) bool {
		key := unquote(name)
		switch {
		case !slices.Contains(fields, key):
			err = fmt.Errorf("unknown key %q", clip(key))
		case values[key] != nil:
			err = fmt.Errorf("%s is there twice", key)
		}
		values[key] = value
		return err == nil
	})
	return values, err
}

// identify reads the fields that nothing depends on: what is wrong with them is a note.
func (m *Message) identify(values map[string][]byte) {
	if raw := values["queue_name"]; raw[0] == '"' {
		m.Queue = unquote(raw)
	} else {
		m.note("queue_name is %s", kind(raw))
	}
	switch raw := values["message_id"]; {
	case raw == nil || string(raw) == "null":
	case raw[0] == '"':
		m.ID = unquote(raw)
	default:
		m.ID = string(raw[:min(len(raw), 200)])
		m.note("message_id is %s", kind(raw))
	}
	if raw := values["message_timestamp"]; raw != nil && string(raw) != "null" {
		if ms, ok := number(raw); !ok {
			m.note("message_timestamp is %s: the message counts as new", kind(raw))
		} else if m.Timestamp = timeOf(ms); m.Timestamp.IsZero() {
			m.note("message_timestamp is %s: the message counts as new", clip(string(raw)))
		}
	}
}

func (m *Message) note(format string, args ...any) {
	m.Notes = append(m.Notes, fmt.Sprintf(format, args...))
}

// repeated returns a key that an object has more than once, or "".
func repeated(object []byte) (twice string) {
	seen := map[string]bool{}
	each(object, func(name, _ []byte) bool {
		key := unquote(name)
		if seen[key] {
			twice = clip(key)
		}
		seen[key] = true
		return twice == ""
	})
	return twice
}

// Encode writes the message as Dramatiq does.
func (m *Message) Encode() ([]byte, error) {
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("encode message: %w", err)
	}
	body := make([]byte, 0, 200+len(m.Queue)+len(m.Actor)+len(m.Args)+len(m.Kwargs)+len(m.Options))
	body = quote(append(body, `{"queue_name":`...), m.Queue)
	body = quote(append(body, `,"actor_name":`...), m.Actor)
	body = append(append(body, `,"args":`...), or(m.Args, emptyArray)...)
	body = append(append(body, `,"kwargs":`...), or(m.Kwargs, emptyObject)...)
	body = append(append(body, `,"options":`...), or(m.Options, emptyObject)...)
	body = quote(append(body, `,"message_id":`...), m.ID)
	body = strconv.AppendInt(append(body, `,"message_timestamp":`...), m.Timestamp.UnixMilli(), 10)
	if body = append(body, '}'); len(body) > MaxBody {
		return nil, fmt.Errorf("encode message: %d bytes, the limit is %d", len(body), MaxBody)
	}
	return body, nil
}

func or(given, otherwise []byte) []byte {
	if given == nil {
		return otherwise
	}
	return given
}

// check refuses what Python could not read.
func (m *Message) check() error {
	if err := ValidQueue(strings.TrimSuffix(m.Queue, delayed)); err != nil {
		return err
	}
	switch {
	case m.Actor == "":
		return errors.New("it names no actor")
	case m.ID == "":
		return errors.New("it has no id")
	case m.Timestamp.IsZero():
		return errors.New("it has no timestamp")
	}
	for i, raw := range [][]byte{or(m.Args, emptyArray), or(m.Kwargs, emptyObject), or(m.Options, emptyObject)} {
		key := fields[2+i]
		if err := valid(raw); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		if err := shaped(key, raw); err != nil {
			return err
		}
	}
	return nil
}

// shaped refuses a value of another kind than its field has.
func shaped(key string, raw []byte) error {
	open := byte('{')
	switch key {
	case "actor_name":
		open = '"'
	case "args":
		open = '['
	}
	if raw[0] != open {
		return fmt.Errorf("%s is %s", key, kind(raw))
	}
	return nil
}

// TaskID is the id of the task that a message becomes: its own if that is a UUID, one made of it otherwise. A message without an id
// gets a new one, so that it is another task each time it comes.
func (m *Message) TaskID() (opscore.ID, error) {
	if m.ID == "" {
		return uuid.NewV7()
	}
	if id, err := uuid.Parse(m.ID); err == nil && len(m.ID) == 36 && id != (opscore.ID{}) {
		return id, nil
	}
	return derive("message", m.ID), nil
}

// derive makes an id of a text of a kind.
func derive(kind, text string) opscore.ID {
	space := uuid.MustParse("6f9bb8a7-3c0f-5d0e-9a55-8f1d3f0f5d21") // ours: made once, at random
	return uuid.NewSHA1(space, []byte(kind+"\x00"+text))
}

// timeOf is the moment that a number of milliseconds stands for, the zero time if it is none that a task can have.
func timeOf(ms float64) time.Time {
	if !(ms >= 1000 && ms < 253402300800000) { // from 1970 on, and before the year 10000
		return time.Time{}
	}
	return time.UnixMilli(int64(ms)).UTC()
}

// kind names the kind of a value, as Python does.
func kind(raw []byte) string {
	switch raw[0] {
	case '{':
		return "a dict"
	case '[':
		return "a list"
	case '"':
		return "a string"
	case 'n':
		return "null"
	case 't', 'f':
		return "a bool"
	}
	return "a number"
}

// clip makes text of a message fit for errors, logs and columns: short, and without control characters, of which no database takes all.
func clip(text string) string {
	if len(text) > maxClip {
		text = strings.ToValidUTF8(text[:maxClip], "") + "…"
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return unicode.ReplacementChar
		}
		return r
	}, text)
}

const maxClip = 80
