package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/opscore/opscore"
)

// session is a command at work on an open store.
type session struct {
	*app
	conf   *config
	cmd    *cobra.Command
	place  database
	store  store
	client *opscore.Client
}

// with loads the configuration, opens the store and closes it after do. A command that only looks needs a
// database that exists: creating one would hide a mistyped path.
func (a *app) with(cmd *cobra.Command, exists mustExist, do func(context.Context, *session) error) (err error) {
	conf, err := a.loadConfig(cmd)
	if err != nil {
		return err
	}
	a.sayFallback(conf)
	s, err := a.open(cmd.Context(), cmd, conf, exists)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.store.Close()) }()
	return do(cmd.Context(), s)
}

// placed loads the configuration and says which database it names, for commands that go on also if that does not answer.
func (a *app) placed(cmd *cobra.Command) (*config, database, error) {
	conf, err := a.loadConfig(cmd)
	if err != nil {
		return nil, nil, err
	}
	a.sayFallback(conf)
	place, err := a.locate(cmd, conf)
	return conf, place, err
}

type mustExist bool

const (
	existing mustExist = true
	created  mustExist = false
)

func (a *app) open(ctx context.Context, cmd *cobra.Command, conf *config, exists mustExist) (*session, error) {
	place, err := a.locate(cmd, conf)
	if err != nil {
		return nil, err
	}
	store, err := place.open(ctx, exists)
	if err != nil {
		return nil, err
	}
	return &session{app: a, conf: conf, cmd: cmd, place: place, store: store, client: &opscore.Client{Store: store, Retention: conf.retention}}, nil
}

// sayDatabase says where tasks are kept if nobody asked for that place.
func (s *session) sayDatabase() {
	if place, isDefault, err := s.conf.place(); err == nil && isDefault {
		s.say("database %s (default)", place)
	}
}

// sayFallback says where tasks are kept if a variable decides that which others use as well.
func (a *app) sayFallback(conf *config) {
	if place, _, err := conf.place(); err == nil && conf.fellBack("database") {
		a.say("database %s (%s)", place, conf.origin("database"))
	}
}

// locate returns the database that the configuration names, and remembers what did.
func (a *app) locate(cmd *cobra.Command, conf *config) (database, error) {
	place, _, err := conf.place()
	if err != nil {
		return nil, err
	}
	a.given = &given{cmd, conf}
	return place, nil
}

// notFound adds to a missing task where it was looked for.
func (s *session) notFound(id opscore.ID, err error) error {
	if errors.Is(err, opscore.ErrTaskNotFound) {
		return fmt.Errorf("task %s not found in %s", id, s.place)
	}
	return err
}

func parseID(text string) (opscore.ID, error) {
	id, err := uuid.Parse(text)
	if err != nil || len(text) != len(id.String()) {
		return opscore.ID{}, usagef("%q is not the id of a task: ids look like 01890a5d-ac96-774b-bcce-b302099a8057; see opscore task list", text)
	}
	return id, nil
}

// parseIDs reads several with one of the functions that read one.
func parseIDs(args []string, parse func(string) (opscore.ID, error)) (ids []opscore.ID, err error) {
	for _, arg := range args {
		id, err := parse(arg)
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// caller names who pauses, cancels and retries.
func caller() string {
	name := "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if host, err := os.Hostname(); err == nil {
		name += "@" + host
	}
	return name
}
