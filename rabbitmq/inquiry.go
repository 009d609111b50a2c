package rabbitmq

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/opscore/opscore"
)

// Inquiry is what can be asked of a broker about the queues of tasks. Each uses a fresh connection: one that is in use may be blocked, and what it was permitted
// once it goes on to be permitted.
type Inquiry struct {
	URLs       string  // as for [Open]
	Options    Options // how queues should have been made, and the build
	Management string  // URL of the management API; "" for none
	Queues     []string
	First      string // the queue of tasks to look at before all others, if no task is asked about; "" for none
	// Adopted are the queues of another system's messages, by the queue of their tasks.
	Adopted map[string][]Declaration
	// Aside names the queue that holds the messages of an adopted one while that is made anew; nil if there is none.
	Aside func(name string) string
	// Deployment tells which epoch the broker's state should have; nil if nobody knows.
	Deployment func(context.Context) (opscore.Deployment, error)
}

// The names of the sources that an inquiry asks.
const (
	SourceBroker     = "rabbitmq"
	SourceManagement = "management"
)

// Bounds of an inquiry.
const (
	inquiryFor   = 900 * time.Millisecond // less than the second that a doctor waits
	answerWithin = 250 * time.Millisecond // the other queues must not wait for one that does not answer
	askedQueues  = 200                    // of the broker, at most
	leftForWrite = 100 * time.Millisecond // of it, for the last question
	readSamples  = 5                      // of the queues
)

// target is a queue of the broker to look at.
type target struct {
	queue string // of tasks
	Declaration
	adopted bool
}

// Gather returns the facts about the broker: how far a connection comes, what its queues are like, what this user may not do with them, whether it takes
// messages, and what the management API adds. It moves no message. That the broker does not answer is no error but a fact.
func (q Inquiry) Gather(ctx context.Context, known *opscore.Facts) (opscore.Facts, error) {
	at, err := parse(q.URLs)
	if err != nil {
		return opscore.Facts{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, inquiryFor)
	defer cancel()
	b := opscore.BrokerFacts{Endpoint: at.endpoint(), User: at.all[0].uri.Username}
	targets := q.targets(known)
	epoch := q.expected(ctx)
	var asking sync.WaitGroup
	var managed overview
	sources := make([]opscore.Asked, 1, 2)
	if q.Management != "" {
		sources = append(sources, opscore.Asked{Source: SourceManagement, At: RedactedManagement(q.Management)})
		asking.Go(func() {
			began := time.Now()
			var err error
			managed, err = q.manage(ctx, at, targets)
			sources[1].Took, sources[1].Err = took(began), textOf(err)
		})
	}
	began := time.Now()
	conn := q.reach(ctx, at, &b)
	if conn != nil {
		sources[0].Err = textOf(q.examine(ctx, conn, epoch, targets, &b))
		go hangUp(conn)
	}
	sources[0].Source, sources[0].At, sources[0].Took = SourceBroker, at.String(), took(began)
	sources[0].Err = cmp.Or(b.Err, sources[0].Err)
	asking.Wait()
	managed.add(&b)
	return opscore.Facts{Broker: &b, Sources: sources}, nil
}

func took(began time.Time) opscore.Duration {
	return opscore.Duration(time.Since(began).Round(100 * time.Microsecond))
}

func textOf(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// targets are the queues that the store knows and that its live workers listen to, and what is adopted for them: first what was asked about.
func (q Inquiry) targets(known *opscore.Facts) (all []target) {
	names := slices.Clone(q.Queues)
	for _, s := range known.Queues {
		names = append(names, s.Queue)
	}
	if known.Task == nil {
		for _, w := range known.Workers {
			if w.Live {
				names = append(names, w.Queues...)
			}
		}
		for queue := range q.Adopted {
			names = append(names, queue)
		}
	}
	first := q.First
	if known.Task != nil {
		first = known.Task.Queue
	}
	slices.Sort(names)
	names = slices.Compact(names)
	if first != "" { // what matters most
		names = slices.Insert(slices.DeleteFunc(names, func(n string) bool { return n == first }), 0, first)
	}
	for _, name := range names {
		all = append(all, target{name, Declaration{Name: queuePrefix + name}, false})
		for _, d := range q.Adopted[name] {
			all = append(all, target{name, d, true})
		}
	}
	return all
}

// asked are the first of the queues: there is no time for more.
func asked(targets []target) []target { return targets[:min(len(targets), askedQueues)] }

// examine asks what an open connection can tell. The error says what it could not.
func (q Inquiry) examine(ctx context.Context, conn *amqp.Connection, epoch <-chan opscore.ID, targets []target, b *opscore.BrokerFacts) error {
	l := &looker{conn: conn, within: answerWithin}
	looking, cancel := context.WithTimeout(ctx, time.Until(deadline(ctx))-leftForWrite)
	defer cancel()
	reading := readability{looker: l, every: (len(asked(targets)) + readSamples - 1) / readSamples}
	for _, t := range asked(targets) {
		if looking.Err() != nil {
			break
		}
		if t.Args == nil {
			t.Declaration = ticketQueue(t.queue, q.Options.Classic, versionOf(conn))
		}
		found := l.queue(looking, t.queue, t.Declaration)
		if found.Adopted = t.adopted; t.adopted && q.Aside != nil {
			found.AsideIn = q.Aside(t.Name)
			aside, _, _ := l.passive(looking, found.AsideIn) // a broker that does not answer has been found out by now
			found.Aside = aside.Messages
		}
		b.Queues = append(b.Queues, found)
		reading.look(looking, b.Queues)
	}
	reading.rest(looking, b.Queues)
	l.epoch(looking, epoch, b)
	var unknown []string
	if len(b.Queues) < len(targets) {
		unknown = append(unknown, fmt.Sprintf("%d of %d queues were looked at", len(b.Queues), len(targets)))
	}
	err := l.mayWrite(ctx)
	if blocked, ok := errors.AsType[blockedError](err); ok {
		b.Blocked = string(blocked)
	} else if denied(err) {
		for i := range b.Queues {
			b.Queues[i].Refused = append(b.Queues[i].Refused, "write: "+words(err))
		}
	} else if err != nil {
		unknown = append(unknown, "whether it takes messages is not known: "+words(err))
	}
	if len(unknown) == 0 {
		return nil
	}
	return errors.New(strings.Join(unknown, "; "))
}

// readability is whether the user may read the queues. Permissions go by user and pattern of names, and the broker logs an error for each queue that is
// asked for. So some are asked for, and all only if one is refused.
type readability struct {
	*looker
	every   int   // of how many one is asked for
	unasked []int // of the queues
	mine    bool  // a queue of opscore's was asked for
	adopted bool  // one that is adopted was
	refused bool
}

// look asks for the last of the queues if it is one of the first queue of tasks, the first of its kind, or its turn.
func (r *readability) look(ctx context.Context, queues []opscore.BrokerQueue) {
	n := len(queues) - 1
	q, kind := &queues[n], &r.mine
	if q.Adopted {
		kind = &r.adopted
	}
	switch {
	case !q.Exists || q.Err != "":
	case r.refused || !*kind || n%r.every == 0 || q.Queue == queues[0].Queue:
		*kind = true
		r.refused = r.read(ctx, q) || r.refused
	default:
		r.unasked = append(r.unasked, n)
	}
}

// rest asks for the others if one was refused.
func (r *readability) rest(ctx context.Context, queues []opscore.BrokerQueue) {
	for _, n := range r.unasked {
		if r.refused && ctx.Err() == nil {
			r.read(ctx, &queues[n])
		}
	}
}

// expected asks the store which epoch the broker's state should have. A store that does not answer says so itself.
func (q Inquiry) expected(ctx context.Context) <-chan opscore.ID {
	answer := make(chan opscore.ID, 1)
	if q.Deployment == nil {
		close(answer)
		return answer
	}
	go func() {
		defer close(answer)
		if d, err := q.Deployment(ctx); err == nil && d.Epoch != (opscore.ID{}) {
			answer <- d.Epoch
		}
	}()
	return answer
}

// epoch finds out whether the broker still has the state that it should have, if the store can tell which one.
func (l *looker) epoch(ctx context.Context, expected <-chan opscore.ID, b *opscore.BrokerFacts) {
	select {
	case id, known := <-expected:
		if !known {
			return
		}
		if _, exists, err := l.passive(ctx, epochPrefix+id.String()); err == nil {
			b.Expected = id
			if exists {
				b.Epoch = id
			}
		}
	case <-ctx.Done():
	}
}

func deadline(ctx context.Context) time.Time {
	d, _ := ctx.Deadline()
	return d
}

// reach connects to the broker, of a cluster to all of its nodes at once, and keeps what came furthest.
func (q Inquiry) reach(ctx context.Context, at addresses, b *opscore.BrokerFacts) *amqp.Connection {
	attempts := make(chan attempt, len(at.all))
	for _, a := range at.all {
		go func() { attempts <- a.connect(ctx, q.Options.Build) }()
	}
	var best attempt
	for i := range at.all {
		a := <-attempts
		switch {
		case best.conn != nil && a.conn != nil:
			go hangUp(a.conn)
		case i == 0 || slices.Index(steps, a.reached) > slices.Index(steps, best.reached):
			best = a
		}
	}
	b.Reached, b.Err = best.reached, best.err
	if len(at.all) > 1 && best.err != "" {
		b.Err = best.host + ": " + best.err
	}
	if best.conn != nil {
		if name, ok := best.conn.Properties["cluster_name"].(string); ok {
			b.Endpoint.Instance = name
		}
	}
	return best.conn
}

// steps are those of a connection, in their order.
var steps = []opscore.BrokerStep{
	opscore.BrokerNone, opscore.BrokerTCP, opscore.BrokerTLS, opscore.BrokerHandshake, opscore.BrokerLogin, opscore.BrokerOpen,
}

// attempt is how far a connection to one server came.
type attempt struct {
	host    string
	reached opscore.BrokerStep
	conn    *amqp.Connection // if it is open
	err     string           // if it is not
}

// connect takes one step after the other.
func (a address) connect(ctx context.Context, build string) attempt {
	got := attempt{host: a.host(), reached: opscore.BrokerNone}
	failed := func(err error) attempt {
		got.err = text(err, a.uri.Username)
		return got
	}
	config, err := a.config()
	if err != nil {
		return failed(err)
	}
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", a.host())
	if err != nil {
		return failed(err)
	}
	got.reached = opscore.BrokerTCP
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	defer stop()
	conn := net.Conn(impatient{raw})
	frank := &candid{}
	if config.TLSClientConfig != nil {
		secure := tls.Client(conn, config.TLSClientConfig)
		if err := secure.HandshakeContext(ctx); err != nil {
			raw.Close()
			return failed(cmp.Or(context.Cause(ctx), err))
		}
		conn = secure
	}
	got.reached = opscore.BrokerTLS
	frank.Conn = conn
	config.Properties = properties("explain", cmp.Or(build, opscore.Build()))
	opened, err := amqp.Open(frank, config)
	switch refusal, _ := errors.AsType[*amqp.Error](err); {
	case err == nil && stop():
		got.reached, got.conn = opscore.BrokerOpen, opened
		return got
	case err == nil: // at the last moment
		got.reached = opscore.BrokerOpen
	case opened.Properties == nil: // that it has sent first, if it speaks AMQP
	case errors.Is(err, amqp.ErrVhost), refusal != nil && refusal.Server && refusal.Code != amqp.AccessRefused:
		got.reached = opscore.BrokerLogin
	default:
		got.reached = opscore.BrokerHandshake
	}
	raw.Close()
	return failed(cmp.Or(context.Cause(ctx), err))
}

// candid is a connection that asks the broker to say so when it does not take the password. Else it says nothing and closes the connection after three
// seconds. The library has no way to ask for it, so this adds it to what the library writes.
type candid struct {
	net.Conn
	asked bool
}

// Write implements [net.Conn].
func (c *candid) Write(p []byte) (int, error) {
	if !c.asked {
		if frame, ok := askCandour(p); ok {
			c.asked = true
			_, err := c.Conn.Write(frame)
			return len(p), err
		}
	}
	return c.Conn.Write(p)
}

// askCandour adds a capability to a whole frame that tells our properties.
func askCandour(frame []byte) (more []byte, ok bool) {
	const (
		head       = 7        // of a frame: its type, its channel and its size
		table      = head + 4 // behind the numbers of the method
		capability = "\x1cauthentication_failure_closet\x01"
	)
	at := bytes.Index(frame, []byte("\x0ccapabilitiesF"))
	if at < table+4 || !bytes.HasPrefix(frame, []byte{1, 0, 0}) || !bytes.Equal(frame[head:table], []byte{0, 10, 0, 11}) ||
		len(frame) != head+int(binary.BigEndian.Uint32(frame[3:]))+1 {
		return nil, false
	}
	at += len("\x0ccapabilitiesF")
	more = slices.Insert(slices.Clone(frame), at+4, []byte(capability)...)
	for _, size := range []int{3, table, at} {
		binary.BigEndian.PutUint32(more[size:], binary.BigEndian.Uint32(more[size:])+uint32(len(capability)))
	}
	return more, true
}

// text says why a connection came no further. No error here holds a password.
func text(err error, user string) string {
	timeout := net.Error(nil)
	e, said := errors.AsType[*amqp.Error](err)
	switch {
	case said && e.Code == amqp.AccessRefused:
		return fmt.Sprintf("%s (user %s)", words(err), user)
	case said:
		return words(err)
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "no answer in time"
	}
	return err.Error()
}
