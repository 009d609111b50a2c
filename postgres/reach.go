package postgres

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/opscore/opscore"
)

// steps are those of a connection, in their order.
var steps = []opscore.DatabaseStep{opscore.DatabaseNone, opscore.DatabaseTCP, opscore.DatabaseRefused, opscore.DatabaseOpen}

// forEarlier is how long, once a server has let us in, those before it in the URL may take to do so as well.
const forEarlier = 100 * time.Millisecond

// attempt is how far a connection to one server came.
type attempt struct {
	config  *pgx.ConnConfig // of that server alone
	reached opscore.DatabaseStep
	conn    *pgx.Conn // if it is open
	err     error     // if it is not
}

// reach connects to all servers that a URL names at once, for one that is frozen would take the time of the others, and keeps what came furthest. Of
// several that let us in that is the first, which is the one that the store uses.
func reach(ctx context.Context, c *pgx.ConnConfig) attempt {
	trying, enough := context.WithCancel(ctx)
	defer enough()
	servers := apart(c)
	attempts := make([]attempt, len(servers))
	var asking sync.WaitGroup
	for n, server := range servers {
		asking.Go(func() {
			attempts[n] = try(trying, server)
			switch {
			case attempts[n].conn == nil:
			case n == 0:
				enough()
			default:
				time.AfterFunc(forEarlier, enough)
			}
		})
	}
	asking.Wait()
	best := attempts[0]
	for _, a := range attempts[1:] {
		if slices.Index(steps, a.reached) > slices.Index(steps, best.reached) {
			best = a
		}
	}
	for _, a := range attempts {
		if a.conn != nil && a.conn != best.conn {
			go func() { _ = a.conn.Close(context.WithoutCancel(ctx)) }()
		}
	}
	return best
}

// apart returns a configuration for each server that one names. A server may be there several times in a row: with encryption and without.
func apart(c *pgx.ConnConfig) (servers []*pgx.ConnConfig) {
	all := append([]*pgconn.FallbackConfig{{Host: c.Host, Port: c.Port, TLSConfig: c.TLSConfig}}, c.Fallbacks...)
	for _, f := range all {
		if last := len(servers) - 1; last >= 0 && servers[last].Host == f.Host && servers[last].Port == f.Port {
			servers[last].Fallbacks = append(servers[last].Fallbacks, f)
			continue
		}
		server := c.Copy()
		server.Host, server.Port, server.TLSConfig, server.Fallbacks = f.Host, f.Port, f.TLSConfig, nil
		servers = append(servers, server)
	}
	return servers
}

// try connects, and notes how far it comes.
func try(ctx context.Context, c *pgx.ConnConfig) attempt {
	a := attempt{config: c, reached: opscore.DatabaseNone}
	dial, fits := c.DialFunc, c.ValidateConnect
	c.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err == nil {
			a.reached = opscore.DatabaseTCP
		}
		return conn, err
	}
	if fits != nil { // target_session_attrs
		c.ValidateConnect = func(ctx context.Context, conn *pgconn.PgConn) error {
			a.reached = opscore.DatabaseRefused
			return fits(ctx, conn)
		}
	}
	a.conn, a.err = pgx.ConnectConfig(ctx, c)
	if _, said := errors.AsType[*pgconn.PgError](a.err); said {
		a.reached = opscore.DatabaseRefused
	}
	if a.err == nil {
		a.reached = opscore.DatabaseOpen
	}
	return a
}
