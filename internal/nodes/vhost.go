package nodes

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"sync"
	"testing"
)

// brokerEnv names the broker's virtual host to use instead of those of one of our own.
const brokerEnv = "OPSCORE_TEST_BROKER_URL"

// sharedBroker is shared by all tests of a process and ended by its guard when the process ends. Nothing else may use it.
var sharedBroker = sync.OnceValues(func() (*RabbitMQ, error) { return StartRabbitMQ(context.Background()) })

// Broker returns the node that all tests of the process share. They must not stop it.
func Broker(t testing.TB) *RabbitMQ {
	t.Helper()
	r, err := sharedBroker()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Vhost returns the AMQP URL of a virtual host of the test's own, which is deleted when the test ends, with whoever is connected
// to it.
//
// It is on the node that all tests of the process share. If OPSCORE_TEST_BROKER_URL is set, the result is that URL as it is,
// for AMQP cannot make a virtual host: tests share this one with each other and with whoever else uses it, so each declares
// queues with names of its own and deletes them.
func Vhost(t testing.TB) string {
	t.Helper()
	at, drop, err := NewVhost()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := drop(); err != nil {
			t.Error(err)
		}
	})
	return at
}

// NewVhost is [Vhost] for examples, which have no test.
func NewVhost() (at string, drop func() error, err error) {
	if at := os.Getenv(brokerEnv); at != "" {
		if u, err := url.Parse(at); err != nil || u.Scheme != "amqp" && u.Scheme != "amqps" {
			return "", nil, errors.New("read " + brokerEnv + ": want amqp://user:password@host:port/vhost")
		}
		return at, func() error { return nil }, nil
	}
	r, err := sharedBroker()
	if err != nil {
		return "", nil, err
	}
	name := randomName()
	drop = func() error {
		return r.within(fmt.Sprintf("rabbit_vhost:delete(<<%q>>, <<%q>>)", name, brokerUser))
	}
	err = r.within(fmt.Sprintf("ok = rabbit_vhost:add(<<%[1]q>>, <<%[2]q>>), "+
		"ok = rabbit_auth_backend_internal:set_permissions(<<%[2]q>>, <<%[1]q>>, <<\".*\">>, <<\".*\">>, <<\".*\">>, <<%[2]q>>)",
		name, brokerUser))
	if err != nil {
		return "", nil, errors.Join(err, drop())
	}
	return r.URL(name), drop, nil
}

// within evaluates an expression whose value does not matter.
func (r *RabbitMQ) within(expression string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, err := r.Eval(ctx, expression)
	return err
}
