package rabbitmq

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/opscore/opscore"
)

// address is one server as its URL names it.
type address struct {
	uri       amqp.URI // with the password: never to be shown
	heartbeat time.Duration
	patience  time.Duration // with a handshake: a process that is frozen accepts connections
	auth      []amqp.Authentication
}

func (a address) host() string { return net.JoinHostPort(a.uri.Host, strconv.Itoa(a.uri.Port)) }

// addresses are those of one cluster.
type addresses struct {
	all  []address
	turn *atomic.Uint64
}

func (a addresses) next() address { return a.all[(a.turn.Add(1)-1)%uint64(len(a.all))] }

func (a addresses) String() string {
	var names []string
	for _, one := range a.all {
		names = append(names, one.String())
	}
	return strings.Join(names, ",")
}

// endpoint is what is known of the servers without a connection.
func (a addresses) endpoint() opscore.Endpoint {
	hosts := make([]string, len(a.all))
	for i, one := range a.all {
		hosts[i] = one.host()
	}
	return opscore.Endpoint{Kind: "rabbitmq", Address: strings.Join(hosts, ","), Name: a.all[0].uri.Vhost}
}

// String leaves out the password, and the parameters.
func (a address) String() string {
	return fmt.Sprintf("%s://%s@%s/%s", a.uri.Scheme, url.PathEscape(a.uri.Username), a.host(),
		url.PathEscape(strings.TrimPrefix(a.uri.Vhost, "/")))
}

// parameters are those that a URL may have.
var parameters = []string{
	"auth_mechanism", "cacertfile", "certfile", "channel_max", "connection_timeout", "heartbeat", "keyfile", "server_name_indication",
}

// ValidURL checks a URL for [Open], or several separated by commas. The error is [opscore.ErrInvalid] and repeats nothing that could be a password.
func ValidURL(urls string) error {
	_, err := parse(urls)
	return err
}

// Redacted is the URL without its password and its parameters; of what is no URL nothing is left.
func Redacted(urls string) string {
	at, err := parse(urls)
	if err != nil {
		return "…"
	}
	return at.String()
}

func parse(urls string) (addresses, error) {
	at := addresses{turn: new(atomic.Uint64)}
	for text := range strings.SplitSeq(urls, ",") {
		one, err := parseOne(strings.TrimSpace(text))
		if err != nil {
			return addresses{}, &opscore.Error{Code: opscore.CodeInvalid, Message: "broker URL", Err: err}
		}
		at.all = append(at.all, one)
	}
	return at, nil
}

// parseOne passes on no error that was made of the text: it may hold a password.
func parseOne(text string) (address, error) {
	u, err := url.Parse(text)
	_, rest, _ := strings.Cut(text, "://")
	authority := rest
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		authority, rest = rest[:i], rest[i:]
	} else {
		rest = ""
	}
	switch {
	// A password that is not escaped ends the authority before its @, and the rest of it would be taken for something else.
	case err != nil, strings.ContainsAny(rest, "@#"), strings.HasSuffix(authority, ":"):
		return address{}, errors.New("not a URL; in a user name or a password, characters other than letters and digits have to be written as %XX")
	case u.Scheme != "amqp" && u.Scheme != "amqps":
		return address{}, errors.New("accepted: amqp://USER:PASSWORD@HOST:PORT/VHOST, or amqps://")
	case u.Host == "":
		return address{}, fmt.Errorf("it names no host: accepted: %s://USER:PASSWORD@HOST:PORT/VHOST", u.Scheme)
	}
	for name := range u.Query() {
		if !slices.Contains(parameters, name) {
			if strings.Trim(name, "abcdefghijklmnopqrstuvwxyz_") != "" {
				name = "…"
			}
			return address{}, fmt.Errorf("parameter %q is not known; there are %s", name, strings.Join(parameters, ", "))
		}
	}
	uri, err := amqp.ParseURI(text)
	switch {
	case err != nil || uri.Port < 1 || uri.Port > 65535:
		return address{}, errors.New("a parameter or the port is not what it should be")
	case (uri.CertFile == "") != (uri.KeyFile == ""):
		return address{}, errors.New("certfile and keyfile go together")
	case uri.Scheme == "amqp" && (uri.CACertFile != "" || uri.CertFile != "" || uri.ServerName != ""):
		return address{}, errors.New("certificates need amqps://")
	}
	a := address{uri: uri, heartbeat: heartbeat, patience: cmp.Or(time.Duration(uri.ConnectionTimeout)*time.Millisecond, patience)}
	if text := u.Query().Get("heartbeat"); text != "" {
		seconds, err := strconv.Atoi(text)
		if err != nil || seconds < 1 {
			return address{}, errors.New("heartbeat is in seconds, at least 1: without it a broken connection is not noticed")
		}
		a.heartbeat = time.Duration(seconds) * time.Second
	}
	a.auth, err = authentications(uri)
	return a, err
}

// authentications are those of the parameter auth_mechanism, in its order.
func authentications(uri amqp.URI) (all []amqp.Authentication, err error) {
	for _, name := range uri.AuthMechanism {
		switch strings.ToLower(name) {
		case "plain":
			all = append(all, uri.PlainAuth())
		case "amqplain":
			all = append(all, uri.AMQPlainAuth())
		case "external":
			all = append(all, &amqp.ExternalAuth{})
		default:
			return nil, fmt.Errorf("auth_mechanism %q: accepted: plain, amqplain, external", name)
		}
	}
	if len(all) == 0 {
		all = append(all, uri.PlainAuth())
	}
	return all, nil
}

// frameSize is RabbitMQ's own limit.
const frameSize = 128 << 10

// config reads the files that the URL names: at each dial, so that new ones are taken.
func (a address) config() (amqp.Config, error) {
	config := amqp.Config{
		Locale: "en_US", Vhost: a.uri.Vhost, SASL: a.auth, ChannelMax: a.uri.ChannelMax, FrameSize: frameSize, Heartbeat: a.heartbeat,
	}
	if a.uri.Scheme != "amqps" {
		return config, nil
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: cmp.Or(a.uri.ServerName, a.uri.Host)}
	if a.uri.CACertFile != "" {
		pem, err := os.ReadFile(a.uri.CACertFile)
		if err != nil {
			return config, unusable("cacertfile", err)
		}
		if t.RootCAs = x509.NewCertPool(); !t.RootCAs.AppendCertsFromPEM(pem) {
			return config, unusable("cacertfile "+a.uri.CACertFile, errors.New("it holds no certificate"))
		}
	}
	if a.uri.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(a.uri.CertFile, a.uri.KeyFile)
		if err != nil {
			return config, unusable("certfile and keyfile", err)
		}
		t.Certificates = []tls.Certificate{pair}
	}
	config.TLSClientConfig = t
	return config, nil
}

func unusable(what string, err error) error {
	return &opscore.Error{Code: opscore.CodeInvalid, Message: "broker URL: " + what, Err: err}
}

// certificate reports whether a TLS handshake failed because one end does not trust the other.
func certificate(err error) bool {
	_, verification := errors.AsType[*tls.CertificateVerificationError](err)
	_, plain := errors.AsType[tls.RecordHeaderError](err)
	return verification || plain || strings.Contains(err.Error(), "remote error: tls:") // the library keeps but its text
}

// product is what our connections say that they are.
const product = "opscore"

// properties are what a connection says of itself among the broker's connections.
func properties(purpose, build string, about ...amqp.Table) amqp.Table {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	t := amqp.NewConnectionProperties()
	t["product"] = product
	t["connection_name"] = fmt.Sprintf("opscore %s %s:%d", purpose, host, os.Getpid())
	t["purpose"], t["host"], t["pid"], t["build"] = purpose, host, int64(os.Getpid()), build
	for _, more := range about {
		maps.Copy(t, more)
	}
	return t
}
