package postgres

import (
	"context"
	"fmt"
	"time"
)

// Age lets d pass: it moves the rows and the observations back, since the clock of a real database is real.
func (s *Store) Age(ctx context.Context, d time.Duration) error {
	for _, text := range []string{
		`UPDATE opscore.task SET run_at = run_at - $1 * interval '1 microsecond', created_at = created_at - $1 * interval '1 microsecond',
			expires_at = expires_at - $1 * interval '1 microsecond', finished_at = finished_at - $1 * interval '1 microsecond'`,
		`UPDATE opscore.worker SET last_beat = last_beat - $1 * interval '1 microsecond', lease_until = lease_until - $1 * interval '1 microsecond',
			gone_at = gone_at - $1 * interval '1 microsecond'`,
		"UPDATE opscore.ticket SET at = at - $1 * interval '1 microsecond'",
		"UPDATE opscore.orphan SET first_seen = first_seen - $1 * interval '1 microsecond', last_seen = last_seen - $1 * interval '1 microsecond'",
	} {
		if _, err := s.pool.Exec(ctx, s.sql(text), d.Microseconds()); err != nil {
			return err
		}
	}
	s.lanes.changed()
	s.outgoing.restart()
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, l := range s.observed.lapsed {
		l.at = l.at.Add(-d)
		s.observed.lapsed[id] = l
	}
	return nil
}

// Address is where the server listens.
func (s *Store) Address() string {
	c := s.pool.Config().ConnConfig
	return fmt.Sprintf("%s:%d", c.Host, c.Port)
}

// Steer and HotPath are the statements whose plan decides how fast tasks flow, with the number of their parameters.
const Steer = steer

// HotPath maps each of them to the indexes of the task table that it may use.
var HotPath = []struct {
	SQL        string
	Parameters int
	Index      string
}{
	{claimDue, 7, "task_due"},
	{claimNotOut, 8, "task_due"},
	{claimTickets, 5, "task_pkey"},
	{adoptSQL, 20, "task_pkey"},
	{standingSQL, 4, "task_pkey"},
	{issueSQL, 10, "task_due"},
	{readLanesSQL, 1, "task_due"},
	{completeSQL, 4, "task_pkey"},
	{lockHeldSQL, 3, "task_pkey"},
}
