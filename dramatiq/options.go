package dramatiq

import (
	"fmt"
	"math"
	"strconv"
	"time"
)

// Dramatiq's defaults.
const (
	defaultRetries    = 20
	defaultMinBackoff = 15 * time.Second
	defaultMaxBackoff = 7 * 24 * time.Hour
)

// options are those of a message that mean something to us. A duration that is negative is not given.
type options struct {
	eta         time.Time // zero if it is not given
	delay       time.Duration
	retries     int
	maxRetries  int // negative if it is not given
	forever     bool
	minBackoff  time.Duration
	maxBackoff  time.Duration
	maxAge      time.Duration
	timeLimit   time.Duration
	priority    int // negative if it is not given
	onSuccess   string
	onFailure   string
	onExhausted string
	pipeTarget  []byte // nil for none
	pipeIgnore  bool
	traceback   string

	notes []string // what is not honoured, and why
}

// OptionNames returns the options of messages that mean something to Dramatiq; others it carries on.
func OptionNames() []string {
	return []string{
		"broker_priority", "delay", "eta", "group_completion_callbacks", "group_completion_uuid", "max_age", "max_backoff", "max_retries", "min_backoff",
		"notify_shutdown", "on_failure", "on_retry_exhausted", "on_success", "pipe_ignore", "pipe_target", "requeue_timestamp", "result_ttl", "retries",
		"store_results", "throws", "time_limit", "traceback",
	}
}

// readOptions reads the options of a message. An option of the wrong type counts as not given and is noted; for some of them Dramatiq
// acks the message and loses it.
func readOptions(object []byte) options {
	o := options{delay: -1, maxRetries: -1, minBackoff: -1, maxBackoff: -1, maxAge: -1, timeLimit: -1, priority: -1}
	each(object, func(name, value []byte) bool {
		key := unquote(name)
		o.read(key, value)
		return true
	})
	return o
}

func (o *options) read(key string, value []byte) {
	switch key {
	case "eta":
		o.readETA(value)
	case "delay":
		o.period(key, value, &o.delay)
	case "retries":
		o.count(key, value, &o.retries)
	case "max_retries":
		if o.forever = string(value) == "null"; !o.forever {
			o.count(key, value, &o.maxRetries)
		}
	case "min_backoff":
		o.period(key, value, &o.minBackoff)
	case "max_backoff":
		o.period(key, value, &o.maxBackoff)
	case "max_age":
		o.limit(key, value, &o.maxAge)
	case "time_limit":
		o.limit(key, value, &o.timeLimit)
	case "broker_priority":
		o.count(key, value, &o.priority)
	case "on_success":
		o.name(key, value, &o.onSuccess)
	case "on_failure":
		o.name(key, value, &o.onFailure)
	case "on_retry_exhausted":
		o.name(key, value, &o.onExhausted)
	case "traceback":
		o.name(key, value, &o.traceback)
	case "pipe_target":
		if truthy(value) {
			o.pipeTarget = value
		}
	case "pipe_ignore":
		o.pipeIgnore = truthy(value)
	default:
		o.unsupported(key, value)
	}
}

// unsupported notes what Dramatiq would do for an option and we do not. Options that it does not know either are the sender's own.
func (o *options) unsupported(key string, value []byte) {
	if !truthy(value) {
		return
	}
	switch key {
	case "group_completion_uuid":
		o.note("%s: the group's completion is counted in Dramatiq's rate limiter backend: this task is not counted", key)
	case "group_completion_callbacks":
		o.note("%s: the callbacks do not run because of this task", key)
	case "store_results", "result_ttl":
		o.note("%s: the result is kept with the task, not in Dramatiq's result backend", key)
	case "notify_shutdown":
		o.note("%s: every handler's context ends when its worker shuts down", key)
	case "throws":
		o.note("%s: it names classes of Python; a handler returns opscore.Abort instead", key)
	}
}

func (o *options) note(format string, args ...any) {
	o.notes = append(o.notes, fmt.Sprintf(format, args...))
}

// readETA reads when the message is due.
func (o *options) readETA(value []byte) {
	ms, ok := number(value)
	if string(value) == "null" {
		return
	}
	switch {
	case !ok:
		o.note("eta is %s: the task is due now", kind(value))
	case ms < 1000: // long ago
	case timeOf(ms).IsZero():
		o.note("eta %s is no time that can come: the task is due now", clip(string(value)))
	default:
		o.eta = timeOf(ms)
	}
}

func (o *options) period(key string, value []byte, into *time.Duration) {
	ms, ok := number(value)
	if !ok || math.IsNaN(ms) || ms < 0 {
		o.note("%s is %s: it counts as not given", key, shown(value))
		return
	}
	*into = time.Duration(math.MaxInt64)
	if ms < float64(math.MaxInt64/int64(time.Millisecond)) {
		*into = time.Duration(ms * float64(time.Millisecond))
	}
}

// limit reads a period of which null, false and 0 mean that it is not given.
func (o *options) limit(key string, value []byte, into *time.Duration) {
	if truthy(value) {
		o.period(key, value, into)
	}
}

func (o *options) count(key string, value []byte, into *int) {
	n, ok := number(value)
	if !ok || n < 0 || n != math.Trunc(n) {
		o.note("%s is %s: it counts as not given", key, shown(value))
		return
	}
	*into = int(min(n, math.MaxInt32-1))
}

func (o *options) name(key string, value []byte, into *string) {
	if string(value) == "null" {
		return
	}
	if value[0] != '"' {
		o.note("%s is %s: it counts as not given", key, shown(value))
		return
	}
	*into = unquote(value)
}

// shown is a value as a note shows it.
func shown(value []byte) string {
	switch value[0] {
	case '{', '[', '"':
		return kind(value)
	}
	return clip(string(value))
}

// number reads a number as a float: what is lost of a large integer does not matter to any option.
func number(value []byte) (float64, bool) {
	switch value[0] {
	case '{', '[', '"', 'n', 't', 'f':
		return 0, false
	}
	f, err := strconv.ParseFloat(string(value), 64)
	return f, err == nil || math.IsInf(f, 0)
}

// truthy is Python's idea of what is true.
func truthy(value []byte) bool {
	if f, ok := number(value); ok {
		return f != 0
	}
	switch string(value) {
	case "null", "false", `""`, "[]", "{}":
		return false
	}
	return true
}

// with returns an object with the value of one key set, and all else as it was, byte for byte.
func with(object []byte, key string, value []byte) []byte {
	changed := without(object, key)
	changed = changed[:len(changed)-1]
	if len(changed) > 1 {
		changed = append(changed, ',')
	}
	changed = append(quote(changed, key), ':')
	return append(append(changed, value...), '}')
}

// without returns an object without a key.
func without(object []byte, key string) []byte {
	changed := make([]byte, 0, len(object)+64)
	changed = append(changed, '{')
	each(object, func(name, value []byte) bool {
		if text := unquote(name); text == key {
			return true
		}
		if len(changed) > 1 {
			changed = append(changed, ',')
		}
		changed = append(append(append(changed, name...), ':'), value...)
		return true
	})
	return append(changed, '}')
}

func integer(n int64) []byte { return strconv.AppendInt(nil, n, 10) }
