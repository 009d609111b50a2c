package rabbitmq_test

import (
	"strings"
	"testing"
	"time"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/internal/nodes"
	"github.com/opscore/opscore/rabbitmq"
)

// TestANodeOfAClusterIsKilledUnderLoad kills the node that leads the queue, and starts it again.
func TestANodeOfAClusterIsKilledUnderLoad(t *testing.T) {
	cluster := nodes.OwnRabbitCluster(t, 3)
	var urls []string
	for _, n := range cluster.Nodes {
		urls = append(urls, n.URL("/"))
	}
	r := newRig(t, strings.Join(urls, ","))
	b := r.broker(rabbitmq.Options{})
	source, _ := r.work(b, &opscore.Worker{Slots: 20})
	r.keep(b)
	r.submit(1, 0)
	r.await()
	settle()
	loaded := r.loading(10_000, 5, 3*time.Millisecond) // for 20 s
	r.until("tasks run by ticket", func() bool { return source.Stats().Claimed > 1000 })
	leader := cluster.Nodes[0]
	for _, n := range cluster.Nodes {
		if where := eval(t, leader, `{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"opscore.orders">>)), element(2, amqqueue:get_pid(Q))`); strings.Contains(where, n.Name()) {
			leader = n
			break
		}
	}
	r.delays()
	check(t, leader.Kill())
	before := source.Stats()
	r.until("tickets go on without it", func() bool { return source.Stats().Claimed > before.Claimed+1000 })
	check(t, leader.Start(t.Context()))
	<-loaded
	r.await()
	waits := r.delays()
	t.Logf("%s; %+v", spread(waits), source.Stats())
	if most := percentile(waits, 100); most > 10*time.Second {
		t.Errorf("a task waited for %v, want at most 10 s", most)
	}
}
