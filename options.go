package opscore

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"time"
	"unicode/utf8"
)

// Defaults and limits of a submit.
const (
	DefaultQueue       = "default"
	DefaultMaxAttempts = 10
	DefaultTimeout     = 10 * time.Minute
	DefaultMaxArgs     = 1 << 20 // bytes
	MaxPriority        = 100     // and -100 is the lowest
	MaxUniqueKey       = 512     // bytes
	MaxLabels          = 32      // per task
	MaxLabelValue      = 512     // bytes
)

// Request is one task to submit. [Actor.Request] makes it from typed input, [NewRequest] from JSON.
// A zero field means its default.
type Request struct {
	ID           ID // made by the client if zero; the same ID again is the same task
	Actor        string
	Args         json.RawMessage
	Queue        string
	Priority     int
	At           time.Time     // not before this
	After        time.Duration // or: not before this long after the store takes it
	ExpiresAt    time.Time     // no attempt starts from then on: a task that still waits fails as expired
	ExpiresAfter time.Duration // the same, counted from when the store takes it
	MaxAttempts  int
	Timeout      time.Duration // of one attempt
	UniqueKey    string
	Labels       map[string]string

	via Inserter
	err error
}

// NewRequest asks for one run of the named actor with args, a JSON document.
func NewRequest(actor string, args json.RawMessage, opts ...Option) Request {
	r := Request{Actor: actor, Args: args}
	r.apply(opts)
	return r
}

// Option changes one request. Options win over the actor's defaults.
type Option func(*Request)

func (r *Request) apply(opts []Option) {
	for _, o := range opts {
		o(r)
	}
}

// After starts the task no earlier than d from now, by the store's clock.
func After(d time.Duration) Option {
	return func(r *Request) { r.After, r.At = d, time.Time{} }
}

// At starts the task no earlier than t.
func At(t time.Time) Option { return func(r *Request) { r.At, r.After = t, 0 } }

// Queue puts the task into the named queue instead of the actor's.
func Queue(name string) Option { return func(r *Request) { r.Queue = name } }

// Priority orders the due tasks of a queue: higher first, from -100 to 100; 0 is the default.
func Priority(p int) Option { return func(r *Request) { r.Priority = p } }

// Unique lets one task of this actor hold key at a time: while a pending, running or completed task holds it,
// a submit stores nothing and returns that task's ID as a Duplicate. A failed, cancelled or pruned task
// holds no key.
func Unique(key string) Option { return func(r *Request) { r.UniqueKey = key } }

// MaxAttempts fails the task after n attempts that ended in an error; the default is 10.
func MaxAttempts(n int) Option { return func(r *Request) { r.MaxAttempts = n } }

// Timeout limits each attempt; the default is 10 minutes.
func Timeout(d time.Duration) Option { return func(r *Request) { r.Timeout = d } }

// ExpiresAt lets no attempt start from t on: a task that is still waiting then, for its first attempt or for a retry,
// fails with code expired.
func ExpiresAt(t time.Time) Option {
	return func(r *Request) { r.ExpiresAt, r.ExpiresAfter = t, 0 }
}

// ExpiresAfter is [ExpiresAt] counted from the submit, by the store's clock.
func ExpiresAfter(d time.Duration) Option {
	return func(r *Request) { r.ExpiresAfter, r.ExpiresAt = d, time.Time{} }
}

// Labels attaches searchable labels, merged over the actor's.
func Labels(labels map[string]string) Option {
	return func(r *Request) {
		merged := maps.Clone(r.Labels)
		if merged == nil {
			merged = make(map[string]string, len(labels))
		}
		maps.Copy(merged, labels)
		r.Labels = merged
	}
}

// WithID gives the task an ID of the caller's. A submit whose answer was lost can be repeated with the
// same ID: the second one finds the first one's task and reports it as a Duplicate.
func WithID(id ID) Option { return func(r *Request) { r.ID = id } }

// Via submits through an inserter other than the client's store. The stores' In(tx) options return it:
// they put a submit into the caller's transaction.
func Via(i Inserter) Option { return func(r *Request) { r.via = i } }

var nameRule = regexp.MustCompile(`^[A-Za-z0-9._:-]{1,200}$`)

// ValidName reports, as an error that names kind and value, whether name can name a queue, an actor or a label.
func ValidName(kind, name string) error {
	if !nameRule.MatchString(name) {
		return invalid("%s %q: a name has 1 to 200 characters out of A-Z a-z 0-9 . _ : -", kind, clip(name, 80))
	}
	return nil
}

// complete fills in defaults.
func (r *Request) complete() {
	r.Queue = cmp.Or(r.Queue, DefaultQueue)
	r.MaxAttempts = cmp.Or(r.MaxAttempts, DefaultMaxAttempts)
	r.Timeout = cmp.Or(r.Timeout, DefaultTimeout)
	if len(r.Args) == 0 {
		r.Args = json.RawMessage("null")
	}
}

// validate refuses what cannot run as asked, naming the field, its value and what is accepted.
func (r *Request) validate(maxArgs int) error {
	if r.err != nil {
		return r.err
	}
	if err := ValidName("actor", r.Actor); err != nil {
		return err
	}
	if err := ValidName("queue", r.Queue); err != nil {
		return err
	}
	if err := validDocument("args", r.Args, maxArgs); err != nil {
		return err
	}
	switch {
	case r.Priority < -MaxPriority || r.Priority > MaxPriority:
		return invalid("priority %d: must be between -%d and %d", r.Priority, MaxPriority, MaxPriority)
	case r.MaxAttempts < 1:
		return invalid("max attempts %d: must be at least 1", r.MaxAttempts)
	case r.After < 0:
		return invalid("after %s: must not be negative", r.After)
	case !representable(r.At):
		return invalid("at %s: must lie between 1970 and the year 10000", r.At)
	case !representable(r.ExpiresAt):
		return invalid("expires at %s: must lie between 1970 and the year 10000", r.ExpiresAt)
	case r.ExpiresAfter < 0:
		return invalid("expires after %s: must not be negative", r.ExpiresAfter)
	case !r.ExpiresAt.IsZero() && !r.At.IsZero() && !r.ExpiresAt.After(r.At):
		return invalid("expires at %s: must be after %s, when the task may start", r.ExpiresAt.Format(time.RFC3339), r.At.Format(time.RFC3339))
	case r.ExpiresAfter > 0 && r.At.IsZero() && r.ExpiresAfter <= r.After:
		return invalid("expires after %s: must be longer than %s, after which the task may start", r.ExpiresAfter, r.After)
	case r.Timeout < time.Millisecond:
		return invalid("timeout %s: must be at least 1ms", r.Timeout)
	case len(r.UniqueKey) > MaxUniqueKey:
		return invalid("unique key: %d bytes, the limit is %d", len(r.UniqueKey), MaxUniqueKey)
	case !utf8.ValidString(r.UniqueKey):
		return invalid("unique key %q: not valid UTF-8", r.UniqueKey)
	}
	return validLabels(r.Labels)
}

// representable reports whether every store and JSON can hold t.
func representable(t time.Time) bool {
	return t.IsZero() || t.Unix() > 0 && t.UTC().Year() < 10_000
}

func validLabels(labels map[string]string) error {
	if len(labels) > MaxLabels {
		return invalid("labels: %d of them, the limit is %d", len(labels), MaxLabels)
	}
	for k, v := range labels {
		if err := ValidName("label", k); err != nil {
			return err
		}
		if len(v) > MaxLabelValue {
			return invalid("label %s: value has %d bytes, the limit is %d", k, len(v), MaxLabelValue)
		}
		if !utf8.ValidString(v) {
			return invalid("label %s: value %q is not valid UTF-8", k, v)
		}
	}
	return nil
}

// validDocument checks that doc is one JSON document of at most limit bytes.
func validDocument(what string, doc []byte, limit int) error {
	if len(doc) > limit {
		return &Error{Code: CodeTooLarge, Message: fmt.Sprintf("%s: %d bytes, the limit is %d", what, len(doc), limit)}
	}
	if !utf8.Valid(doc) {
		return invalid("%s: byte %d is not valid UTF-8", what, invalidUTF8(doc))
	}
	if !json.Valid(doc) {
		return invalid("%s: not valid JSON: %s", what, syntaxError(doc))
	}
	return nil
}

func invalidUTF8(b []byte) int {
	off := 0
	for off < len(b) {
		r, n := utf8.DecodeRune(b[off:])
		if r == utf8.RuneError && n == 1 {
			break
		}
		off += n
	}
	return off
}

func syntaxError(doc []byte) string {
	if len(bytes.TrimSpace(doc)) == 0 {
		return "it is empty"
	}
	var v any
	err := json.Unmarshal(doc, &v)
	if se, ok := errors.AsType[*json.SyntaxError](err); ok {
		return fmt.Sprintf("%s, at byte %d", se, se.Offset)
	}
	return fmt.Sprint(err)
}
