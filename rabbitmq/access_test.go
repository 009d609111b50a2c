package rabbitmq_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/internal/nodes"
	"github.com/opscore/opscore/rabbitmq"
)

// authority signs certificates for a test.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, dir string) *authority {
	t.Helper()
	a := &authority{t: t, dir: dir}
	check(t, os.MkdirAll(dir, 0o755))
	a.cert, a.key = a.sign("ca", &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

// sign writes NAME.pem and NAME.key.
func (a *authority) sign(name string, of *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(a.t, err)
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	check(a.t, err)
	of.SerialNumber, of.Subject = serial, pkix.Name{CommonName: name}
	of.NotBefore = time.Now().Add(-48 * time.Hour)
	if of.NotAfter.IsZero() {
		of.NotAfter = time.Now().Add(time.Hour)
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = of, key
	}
	der, err := x509.CreateCertificate(rand.Reader, of, parent, &key.PublicKey, signer)
	check(a.t, err)
	cert, err := x509.ParseCertificate(der)
	check(a.t, err)
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	check(a.t, err)
	check(a.t, os.WriteFile(a.file(name+".pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644),
		os.WriteFile(a.file(name+".key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o644))
	return cert, key
}

func (a *authority) file(name string) string { return filepath.Join(a.dir, name) }

// secured is a node whose TLS listener has a certificate for localhost and wants one of its clients.
func secured(t *testing.T, a *authority, server string) (n *nodes.RabbitMQ, at func(host string, parameters url.Values) string) {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	check(t, err)
	port := l.Addr().(*net.TCPAddr).Port
	check(t, l.Close())
	n = nodes.OwnRabbitMQ(t, fmt.Sprintf("listeners.ssl.1 = 127.0.0.1:%d", port), "ssl_options.cacertfile = "+a.file("ca.pem"),
		"ssl_options.certfile = "+a.file(server+".pem"), "ssl_options.keyfile = "+a.file(server+".key"),
		"ssl_options.verify = verify_peer", "ssl_options.fail_if_no_peer_cert = true")
	return n, func(host string, parameters url.Values) string {
		u, err := url.Parse(n.URL("/"))
		check(t, err)
		u.Scheme, u.Host, u.RawQuery = "amqps", fmt.Sprintf("%s:%d", host, port), parameters.Encode()
		return u.String()
	}
}

func TestAnEncryptedConnectionIsVerifiedBothWays(t *testing.T) {
	dir := t.TempDir()
	a, stranger := newAuthority(t, filepath.Join(dir, "ours")), newAuthority(t, filepath.Join(dir, "theirs"))
	a.sign("server", &x509.Certificate{DNSNames: []string{"localhost"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	a.sign("client", &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	stranger.sign("client", &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	_, at := secured(t, a, "server")
	good := url.Values{"cacertfile": {a.file("ca.pem")}, "certfile": {a.file("client.pem")}, "keyfile": {a.file("client.key")}}
	with := func(key, value string) url.Values {
		v := url.Values{}
		for k := range good {
			v.Set(k, good.Get(k))
		}
		v.Set(key, value)
		return v
	}
	r := newRig(t, at("localhost", good))
	b := r.broker(rabbitmq.Options{})
	source, _ := r.work(b, &opscore.Worker{})
	r.keep(b)
	r.load(200, 10, 0)
	r.await()
	if source.Stats().Claimed == 0 {
		t.Errorf("%+v: no task came by ticket", source.Stats())
	}
	for name, url := range map[string]string{
		"another authority":            at("localhost", with("cacertfile", stranger.file("ca.pem"))),
		"the system's authorities":     at("localhost", url.Values{"certfile": good["certfile"], "keyfile": good["keyfile"]}),
		"another name":                 at("127.0.0.1", good),
		"another name that is claimed": at("localhost", with("server_name_indication", "mq.example.com")),
		"no certificate of our own":    at("localhost", url.Values{"cacertfile": good["cacertfile"]}),
		"a stranger's certificate":     at("localhost", url.Values{"cacertfile": good["cacertfile"], "certfile": {stranger.file("client.pem")}, "keyfile": {stranger.file("client.key")}}),
	} {
		err := refusal(t, r, url)
		if err == nil || !strings.Contains(err.Error(), "its certificate, or ours, is not accepted") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, file := range []string{"cacertfile", "certfile"} {
		if _, err := rabbitmq.Open(t.Context(), at("localhost", with(file, filepath.Join(dir, "missing"))), r.store, rabbitmq.Options{Log: r.log}); err == nil ||
			!strings.Contains(err.Error(), "missing") {
			t.Errorf("without the %s: %v", file, err)
		}
	}
}

// refusal returns why a broker cannot be opened. The server closes the connection right after it has refused a certificate, so that we may not
// hear the reason; then it looks as if it could not be reached, and another try hears it.
func refusal(t *testing.T, r *rig, url string) (err error) {
	for range 20 {
		var log strings.Builder
		b, err := rabbitmq.Open(t.Context(), url, r.store, rabbitmq.Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
		if err != nil {
			return err
		}
		b.Close()
		if !strings.Contains(log.String(), "degraded") {
			t.Fatal("it was let in")
		}
	}
	return nil
}

// TestThePermissionsInTheDocsAreEnough runs the lines of docs/operations/rabbitmq.md and works with nothing more.
func TestThePermissionsInTheDocsAreEnough(t *testing.T) {
	doc, err := os.ReadFile("../docs/operations/rabbitmq.md")
	check(t, err)
	lines := regexp.MustCompile(`(?m)^rabbitmqctl (set_permissions .*)$`).FindAllSubmatch(doc, -1)
	if len(lines) != 2 {
		t.Fatalf("the docs have %d lines, want that of workers and that of doctor", len(lines))
	}
	n, admin := node(t)
	for _, user := range []string{"opscore_worker", "opscore_doctor"} {
		_, err := n.Ctl(t.Context(), "add_user", user, "canary")
		check(t, err)
	}
	for _, l := range lines {
		args := strings.Fields(strings.ReplaceAll(string(l[1]), "'", ""))
		for i := range args {
			if args[i] == "VHOST" {
				args[i] = vhost
			}
		}
		_, err := n.Ctl(t.Context(), args...)
		check(t, err)
	}
	as := func(user string) string {
		u, err := url.Parse(admin)
		check(t, err)
		u.User = url.UserPassword(user, "canary")
		return u.String()
	}
	r := newRig(t, as("opscore_worker"))
	b := r.broker(rabbitmq.Options{})
	source, _ := r.work(b, &opscore.Worker{})
	r.keep(b)
	r.load(200, 10, 0)
	r.await()
	if source.Stats().Claimed == 0 {
		t.Errorf("%+v: no task came by ticket", source.Stats())
	}
	r.at = as("opscore_doctor")
	if n := r.waiting("opscore.orders"); n != 0 {
		t.Errorf("doctor sees %d tickets", n)
	}
	if _, _, err := r.channel().Get("opscore.orders", false); err == nil {
		t.Error("doctor can take tickets")
	}
	if _, err := r.channel().QueueDeclare("opscore.more", true, false, false, false, nil); err == nil {
		t.Error("doctor can make queues")
	}
}
