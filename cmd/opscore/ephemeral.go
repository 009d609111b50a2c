package main

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/opscore/opscore/postgres"
)

// makeEphemeral makes a directory for the tasks of this process alone, has conf keep them there, and returns what removes it.
func (a *app) makeEphemeral(cmd *cobra.Command, conf *config, log *slog.Logger) (remove func() error, err error) {
	if conf.fellBack("broker") {
		conf.broker = ""
		conf.pass(conf.value("broker").setting, brokerNeeds)
	}
	if err := conf.allowsEphemeral(cmd); err != nil {
		return nil, err
	}
	parent, err := filepath.Abs(os.TempDir()) // others, who read the ready file, may be in another directory
	if err != nil {
		return nil, fmt.Errorf("make ephemeral database: %w", err)
	}
	dir, err := os.MkdirTemp(parent, "opscore-")
	if err != nil {
		return nil, fmt.Errorf("make ephemeral database: %w", err)
	}
	attrs := []any{"database", filepath.Join(dir, "opscore.db")}
	if conf.database != "" {
		attrs = append(attrs, "instead_of", conf.origin("database"))
	}
	log.Info("the database is ephemeral: it is removed at the end", attrs...)
	conf.database = filepath.Join(dir, "opscore.db")
	v := conf.value("database")
	v.candidates = slices.Insert(v.candidates, 0, candidate{raw: []string{conf.database}, origin: "flag --ephemeral"})
	return func() error {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove ephemeral database: %w", err)
		}
		return nil
	}, nil
}

// allowsEphemeral refuses what asks for another database than a new SQLite file. A flag that names one is a contradiction;
// the environment and the file are there for other commands as well, and are overridden. A broker and a schema are not:
// every other command would refuse them next to this database.
func (c *config) allowsEphemeral(cmd *cobra.Command) error {
	switch {
	case cmd.Flags().Changed("database"):
		return usagef("--ephemeral and --database exclude each other: an ephemeral database is a new file, which is removed at the end")
	case c.broker != "":
		return usagef("broker (%s): only tasks in a postgres:// database can be dispatched through RabbitMQ, but --ephemeral keeps them in a file",
			c.origin("broker"))
	case c.schema != postgres.DefaultSchema:
		return usagef("schema (%s) %q: only a postgres:// database has schemas, but --ephemeral keeps the tasks in a file", c.origin("schema"), c.schema)
	}
	return c.checkDramatiq() // which may have passed with a broker that is not used
}
