package dramatiq

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/opscore/opscore"
)

// MessageLabel is the label of tasks that were messages; its value is the message's id.
const MessageLabel = "dramatiq"

// arguments is the args of an adopted task.
type arguments struct {
	Args   json.RawMessage `json:"args"`   // or a string, if Python wrote what is not quite JSON
	Kwargs json.RawMessage `json:"kwargs"` // as well
}

// origin is what an adopted task keeps of its message besides the arguments.
type origin struct {
	Version   int             `json:"dramatiq"`
	Queue     string          `json:"queue_name"`
	ID        string          `json:"message_id"`
	Timestamp int64           `json:"message_timestamp"`
	Options   json.RawMessage `json:"options"`
	Retries   int             `json:"retries,omitempty"` // before it came here
	Notes     []string        `json:"notes,omitempty"`   // what is not honoured, and why
}

// originVersion is that of the documents that we write.
const originVersion = 1

// Adoption says what task a message of a queue is: with the defaults of the actor's handler, if there is one, and Dramatiq's otherwise.
// A message that cannot be decoded is an error.
func Adoption(queue string, body []byte, h opscore.Handlers) (opscore.Adoption, error) {
	m, err := Decode(body)
	if err != nil {
		return opscore.Adoption{}, err
	}
	return m.adoption(queue, h)
}

func (m *Message) adoption(queue string, h opscore.Handlers) (a opscore.Adoption, err error) {
	queue = strings.TrimSuffix(queue, delayed)
	id, err := m.TaskID()
	if err != nil {
		return a, fmt.Errorf("make an id: %w", err)
	}
	if m.ID == "" {
		m.ID = id.String()
	}
	if m.Timestamp.IsZero() {
		m.Timestamp = time.Now().UTC().Truncate(time.Millisecond)
	}
	own, retry, _ := h.Defaults(m.Actor)
	o := readOptions(m.Options)
	a = opscore.Adoption{Made: m.Timestamp, Attempts: o.retries, Retry: o.backoff(retry)}
	a.Request = opscore.Request{
		ID: id, Actor: m.Actor, Queue: queue, At: o.eta, MaxAttempts: o.attempts(own.MaxAttempts), Timeout: o.timeout(own.Timeout),
		Priority: o.rank(own.Priority), ExpiresAt: o.expiry(m.Timestamp, own.ExpiresAfter), Labels: labels(m.ID, own.Labels),
	}
	m.examine(queue, &o)
	if a.Request.Args, err = document(arguments{text(m.Args), text(m.Kwargs)}); err != nil {
		return a, err
	}
	a.Origin, err = document(origin{
		Version: originVersion, Queue: queue, ID: m.ID, Timestamp: m.Timestamp.UnixMilli(), Options: text(without(m.Options, "eta")),
		Retries: o.retries, Notes: append(m.Notes, o.notes...),
	})
	return a, err
}

// labels are those of the actor's tasks, and the message's id.
func labels(id string, own map[string]string) map[string]string {
	all := make(map[string]string, len(own)+1)
	maps.Copy(all, own)
	if len(id) > opscore.MaxLabelValue || strings.ContainsRune(id, 0) {
		id = clip(id)
	}
	if len(all) < opscore.MaxLabels { // the actor's own come first
		all[MessageLabel] = id
	}
	return all
}

// examine notes what is strange about a message that came in a queue.
func (m *Message) examine(queue string, o *options) {
	if m.Queue != "" && strings.TrimSuffix(m.Queue, delayed) != queue {
		m.note("queue_name is %q, but the message came in queue %s: that counts", clip(m.Queue), queue)
	}
	if o.delay >= 0 {
		o.note("delay: it only counts for a later step of a pipeline, and for a message in %s%s there is an eta", queue, delayed)
	}
	if o.pipeTarget != nil {
		if _, err := Decode(o.pipeTarget); err != nil {
			o.note("pipe_target: %s: there is no next step", err)
		}
	}
	if o.retries > 0 {
		last := "it is not known why"
		if lines := strings.Split(strings.TrimSpace(o.traceback), "\n"); o.traceback != "" {
			last = "the last time with " + clip(lines[len(lines)-1])
		}
		m.note("it failed %d times at a worker of Dramatiq's, %s", o.retries, last)
	}
}

// attempts is how many the task may have: one more than retries.
func (o *options) attempts(own int) int {
	switch {
	case o.forever:
		return opscore.ForeverAttempts
	case o.maxRetries >= 0:
		return o.maxRetries + 1
	}
	return cmp.Or(own, defaultRetries+1)
}

// backoff makes the first wait one between min_backoff and twice that, as Dramatiq does; zero means the actor's own.
func (o *options) backoff(own opscore.Backoff) opscore.Backoff {
	if o.minBackoff < 0 && o.maxBackoff < 0 && own != (opscore.Backoff{}) {
		return opscore.Backoff{}
	}
	least, most := defaultMinBackoff, defaultMaxBackoff
	if o.minBackoff >= 0 {
		least = o.minBackoff
	}
	if o.maxBackoff >= 0 {
		most = min(o.maxBackoff, most)
	}
	return opscore.Backoff{Base: max(min(least, most)*3/2, 1), Factor: 2, Jitter: 1. / 3, Max: max(most, 1)}
}

func (o *options) timeout(own time.Duration) time.Duration {
	if o.timeLimit > 0 {
		return max(o.timeLimit, time.Millisecond)
	}
	return own // or 10 minutes, as with Dramatiq
}

// rank is the task's priority. Dramatiq's broker_priority goes to 255.
func (o *options) rank(own int) int {
	if o.priority > opscore.MaxPriority {
		o.note("broker_priority %d: the task has priority %d, the highest", o.priority, opscore.MaxPriority)
		return opscore.MaxPriority
	}
	if o.priority >= 0 {
		return o.priority
	}
	return own
}

// expiry is when the message is too old to be run.
func (o *options) expiry(made time.Time, own time.Duration) time.Time {
	if o.maxAge > 0 {
		own = o.maxAge
	}
	if own <= 0 {
		return time.Time{}
	}
	return made.Add(own)
}
