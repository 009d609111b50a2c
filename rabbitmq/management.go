package rabbitmq

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/google/uuid"

	"github.com/opscore/opscore"
)

// management is the HTTP API of RabbitMQ's management plugin.
type management struct {
	base     string // without a user, without a slash at the end
	user     *url.Userinfo
	client   *http.Client
	vhost    string
	inFlight chan struct{}
}

// Bounds of what is asked of the management API.
const (
	maxAnswer  = 4 << 20 // bytes
	askAtOnce  = 8
	maxDetails = 100 // channels and connections
)

// ValidManagementURL checks the URL of the management API of a broker, whose URLs may be "". The error is [opscore.ErrInvalid] and repeats nothing that could be
// a password.
func ValidManagementURL(text, broker string) error {
	u, err := parseManagement(text)
	if err != nil || broker == "" {
		return err
	}
	at, err := parse(broker)
	if err != nil {
		return err
	}
	return discloses(u, at.all[0])
}

// discloses refuses to send a password that the broker gets encrypted to another host without encryption.
func discloses(u *url.URL, at address) error {
	ip := net.ParseIP(u.Hostname())
	if u.User != nil || u.Scheme == "https" || at.uri.Scheme != "amqps" || u.Hostname() == "localhost" || ip != nil && ip.IsLoopback() {
		return nil
	}
	return &opscore.Error{
		Code:    opscore.CodeInvalid,
		Message: "management URL: the broker's password would go over the network as it is: use https://, or name in it a user of its own, with a password",
	}
}

// RedactedManagement is the URL without its password; of what is no URL nothing is left.
func RedactedManagement(text string) string {
	u, err := parseManagement(text)
	if err != nil {
		return "…"
	}
	if u.User != nil {
		u.User = url.User(u.User.Username())
	}
	return u.String()
}

func parseManagement(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.RawQuery != "" || u.Fragment != "" || strings.Contains(u.Path, "@") {
		return nil, &opscore.Error{
			Code:    opscore.CodeInvalid,
			Message: "management URL: accepted: http://USER:PASSWORD@HOST:PORT, or https://; characters other than letters and digits in user and password are written as %XX",
		}
	}
	return u, nil
}

// newManagement uses the broker's user where the URL has none, and its certificates.
func newManagement(text string, at address) (*management, error) {
	u, err := parseManagement(text)
	if err != nil {
		return nil, err
	}
	if err := discloses(u, at); err != nil {
		return nil, err
	}
	m := &management{user: u.User, vhost: at.uri.Vhost, inFlight: make(chan struct{}, askAtOnce)}
	if m.user == nil {
		m.user = url.UserPassword(at.uri.Username, at.uri.Password)
	}
	u.User = nil
	m.base = strings.TrimSuffix(u.String(), "/")
	config, err := at.config()
	if err != nil {
		return nil, err
	}
	if config.TLSClientConfig != nil {
		config.TLSClientConfig.ServerName = "" // that is the broker's
	}
	m.client = &http.Client{
		Transport:     &http.Transport{TLSClientConfig: config.TLSClientConfig, MaxConnsPerHost: askAtOnce},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // not with our password
	}
	return m, nil
}

// get reads an answer, at most maxAnswer of it. Its status is 200, or one of those that are expected besides.
func (m *management) get(ctx context.Context, into any, path string, also ...int) error {
	select {
	case m.inFlight <- struct{}{}:
		defer func() { <-m.inFlight }()
	case <-ctx.Done():
		return errNoTime
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, m.base+path, nil)
	if err != nil {
		return fmt.Errorf("ask the management API: %w", err)
	}
	password, _ := m.user.Password()
	request.SetBasicAuth(m.user.Username(), password)
	answer, err := m.client.Do(request)
	if ctx.Err() != nil {
		err = errNoTime
	}
	if failed, ok := errors.AsType[*url.Error](err); ok {
		err = failed.Err
	}
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK && !slices.Contains(also, answer.StatusCode) {
		return statusError(answer.StatusCode)
	}
	if err := json.NewDecoder(io.LimitReader(answer.Body, maxAnswer)).Decode(into); err != nil {
		return fmt.Errorf("read the management API's answer: %w", err)
	}
	return nil
}

var errNoTime = errors.New("no answer in time")

// statusError is an HTTP status that says no.
type statusError int

func (e statusError) Error() string {
	text := fmt.Sprintf("%d %s", int(e), http.StatusText(int(e)))
	if e == http.StatusUnauthorized {
		text += ": the user needs the tag management, or monitoring to see what is not its own"
	}
	return text
}

// overview is what the management API told.
type overview struct {
	answered bool
	alarms   []string
	queues   map[string]opscore.BrokerQueue // by their names in the broker; only what the API alone knows is set
}

// add puts what was told beside what the broker itself said.
func (o overview) add(to *opscore.BrokerFacts) {
	to.Managed, to.Alarms = o.answered, o.alarms
	for i := range to.Queues {
		q := &to.Queues[i]
		m := o.queues[q.Name]
		q.Unacked, q.Policy, q.Members, q.Online = m.Unacked, m.Policy, m.Members, m.Online
		if q.Consumers > 0 { // else those that are listed were there a moment ago
			q.Consuming = present(m.Consuming, q.Consumers)
		}
	}
}

// present leaves out consumers that are gone. The API goes on to list those of a queue that was deleted and made again: then without their channels, once those
// are closed. But those of AMQP 1.0 have none either, so as many are kept as the broker itself counts.
func present(listed []opscore.Consumer, count int) (live []opscore.Consumer) {
	var without []opscore.Consumer
	for _, c := range listed {
		if c.Conn == "" {
			without = append(without, c)
		} else {
			live = append(live, c)
		}
	}
	return append(live, without[:min(len(without), max(0, count-len(live)))]...)
}

// managedQueue is a queue as the API shows it. Statistics are missing for some seconds after it was made.
type managedQueue struct {
	Unacked   number                 `json:"messages_unacknowledged"`
	Members   []string               `json:"members"`
	Online    []string               `json:"online"`
	Policy    string                 `json:"policy"`
	Operator  string                 `json:"operator_policy"`
	Effective object[map[string]any] `json:"effective_policy_definition"`
	Consumers []managedConsumer      `json:"consumer_details"`
}

type managedConsumer struct {
	Tag      string                 `json:"consumer_tag"`
	Acks     bool                   `json:"ack_required"`
	Prefetch number                 `json:"prefetch_count"`
	Channel  object[managedChannel] `json:"channel_details"`
}

type managedChannel struct {
	Name       string `json:"name"`
	Connection string `json:"connection_name"`
	Host       string `json:"peer_host"`
	Port       number `json:"peer_port"`
	User       string `json:"user"`
}

// object is a JSON object, which Erlang writes as an empty list if it is empty.
type object[T any] struct{ is T }

// UnmarshalJSON implements [json.Unmarshaler].
func (o *object[T]) UnmarshalJSON(text []byte) error {
	if len(text) > 0 && text[0] == '{' {
		return json.Unmarshal(text, &o.is)
	}
	return nil
}

// number is one that Erlang may not have: then it writes a word, such as undefined.
type number int64

// UnmarshalJSON implements [json.Unmarshaler].
func (n *number) UnmarshalJSON(text []byte) error {
	if f, err := strconv.ParseFloat(string(text), 64); err == nil {
		*n = number(f)
	}
	return nil
}

// manage asks the management API. With an error it returns what it was told all the same.
func (q Inquiry) manage(ctx context.Context, at addresses, targets []target) (overview, error) {
	told := overview{queues: map[string]opscore.BrokerQueue{}}
	m, err := newManagement(q.Management, at.all[0])
	if err != nil {
		return told, err
	}
	defer m.client.CloseIdleConnections()
	var mu sync.Mutex
	var errs []error
	var asking sync.WaitGroup
	note := func(answered bool, err error) {
		told.answered = told.answered || answered
		if err != nil && !slices.ContainsFunc(errs, func(e error) bool { return e.Error() == err.Error() }) {
			errs = append(errs, err)
		}
	}
	asking.Go(func() {
		alarms, err := m.alarms(ctx)
		mu.Lock()
		defer mu.Unlock()
		told.alarms = alarms
		note(err == nil, err)
	})
	next := make(chan string) // in their order: the time may not do for all
	look := func(name string) {
		found, err := m.queue(ctx, name)
		mu.Lock()
		defer mu.Unlock()
		if errors.Is(err, statusError(http.StatusNotFound)) {
			err = nil // the broker itself says whether it exists
		} else if err == nil {
			told.queues[name] = found
		}
		note(err == nil, err)
	}
	for range askAtOnce {
		asking.Go(func() {
			for name := range next {
				look(name)
			}
		})
	}
	for _, t := range asked(targets) {
		next <- t.Name
	}
	close(next)
	asking.Wait()
	return told, errors.Join(errs...)
}

// alarms names those that are in effect, with the numbers where they are known.
func (m *management) alarms(ctx context.Context) (texts []string, err error) {
	var health struct {
		Alarms []struct{ Node, Resource string }
	}
	if err := m.get(ctx, &health, "/api/health/checks/alarms", http.StatusServiceUnavailable); err != nil || len(health.Alarms) == 0 {
		return nil, err
	}
	var nodes []managedNode
	const columns = "?columns=name,mem_alarm,mem_used,mem_limit,disk_free_alarm,disk_free,disk_free_limit"
	if err := m.get(ctx, &nodes, "/api/nodes"+columns); err != nil {
		nodes = nil // who may not see them has the alarms all the same
	}
	for _, a := range health.Alarms {
		of := slices.IndexFunc(nodes, func(n managedNode) bool { return n.Name == a.Node })
		numbers := ""
		if of >= 0 {
			numbers = nodes[of].numbers(a.Resource)
		}
		texts = append(texts, fmt.Sprintf("%s alarm on %s%s", a.Resource, a.Node, numbers))
	}
	return texts, nil
}

// managedNode is a node of the cluster as the API shows it: as it was up to five seconds ago.
type managedNode struct {
	Name      string
	MemAlarm  bool   `json:"mem_alarm"`
	MemUsed   number `json:"mem_used"`
	MemLimit  number `json:"mem_limit"`
	DiskAlarm bool   `json:"disk_free_alarm"`
	DiskFree  number `json:"disk_free"`
	DiskLimit number `json:"disk_free_limit"`
}

// numbers are those of an alarm, unless they are older than it.
func (n managedNode) numbers(resource string) string {
	switch {
	case resource == "memory" && n.MemAlarm:
		return fmt.Sprintf(": %d bytes used, the limit is %d", n.MemUsed, n.MemLimit)
	case resource != "memory" && n.DiskAlarm:
		return fmt.Sprintf(": %d bytes free, the limit is %d", n.DiskFree, n.DiskLimit)
	}
	return ""
}

// queue reads what the API alone knows of a queue.
func (m *management) queue(ctx context.Context, name string) (q opscore.BrokerQueue, err error) {
	var found managedQueue
	if err := m.get(ctx, &found, "/api/queues/"+url.PathEscape(m.vhost)+"/"+url.PathEscape(name)); err != nil {
		return q, err
	}
	q.Unacked, q.Members, q.Online = int(found.Unacked), found.Members, found.Online
	if len(found.Effective.is) > 0 {
		q.Policy = &opscore.BrokerPolicy{Name: found.Policy, Operator: found.Operator, Definition: found.Effective.is}
	}
	q.Consuming = make([]opscore.Consumer, len(found.Consumers))
	var asking sync.WaitGroup
	for i, c := range found.Consumers {
		at, into := c.Channel.is, &q.Consuming[i]
		*into = opscore.Consumer{Tag: c.Tag, Conn: at.Connection, User: at.User, AutoAck: !c.Acks, Prefetch: int(c.Prefetch)}
		if at.Host != "" && at.Port > 0 {
			into.Peer = net.JoinHostPort(at.Host, strconv.Itoa(int(at.Port)))
		}
		if i < maxDetails && at.Name != "" {
			asking.Go(func() { m.holds(ctx, at.Name, into) })
			asking.Go(func() { m.says(ctx, at.Connection, into) })
		}
	}
	asking.Wait()
	return q, nil
}

// holds reads what is not acknowledged on a consumer's channel. That may be gone by now, or not ours to see.
func (m *management) holds(ctx context.Context, channel string, into *opscore.Consumer) {
	var found struct {
		Unacked number `json:"messages_unacknowledged"`
	}
	if m.get(ctx, &found, "/api/channels/"+url.PathEscape(channel)+"?columns=messages_unacknowledged") == nil {
		into.Unacked = int(found.Unacked)
	}
}

// says reads what a consumer's connection says of itself. It is believed only what opscore says, and anybody may say that it is opscore.
func (m *management) says(ctx context.Context, connection string, into *opscore.Consumer) {
	var found struct {
		Properties object[map[string]any] `json:"client_properties"`
	}
	err := m.get(ctx, &found, "/api/connections/"+url.PathEscape(connection)+"?columns=client_properties")
	says := func(key string) string {
		text, _ := found.Properties.is[key].(string)
		return text
	}
	if err != nil || says("product") != product {
		return
	}
	if worker, err := uuid.Parse(says("worker")); err == nil {
		into.Worker = worker
	}
	if pid, ok := found.Properties.is["pid"].(float64); ok {
		into.PID = int(pid)
	}
	into.Host, into.Build, into.Instance = says("host"), says("build"), says("instance")
}
