package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/agnivade/levenshtein"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

const rootLong = `opscore runs background tasks durably: every task you submit either runs, or opscore says exactly why not.
Tasks are kept in one SQLite file; nothing has to be installed or started first.

Try it:
  opscore run echo '{"hello":"world"}'     run one task here and now and print its result

Then, with a worker in another terminal:
  opscore dev                              a worker with demo actors
  opscore submit --wait sleep '{"seconds":3}'
  opscore task list

Your own work is a command in any language, declared in opscore.yaml, or a Go function of your own worker:
  actors:
    hello: {command: [echo, hello]}`

// rootCommand is the table of all commands.
func (a *app) rootCommand() *cobra.Command {
	root := a.group("opscore", "Durable background tasks: every one runs, or you learn why not", rootLong)
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetFlagErrorFunc(flagError)
	root.SetHelpCommand(a.helpCommand())
	root.PersistentFlags().BoolVar(&a.json, "json", false, "print JSON, for programs")
	root.PersistentFlags().String("config", "", "read the configuration from `FILE` (default opscore.yaml, if there is one)")
	root.PersistentFlags().String("env-file", "", "read variables of opscore that are not set from `FILE`, of lines NAME=VALUE")
	addSettingFlags(root.PersistentFlags(), "database", "schema", "log_format")
	root.AddGroup(
		&cobra.Group{ID: "work", Title: "Run tasks:"},
		&cobra.Group{ID: "look", Title: "Look after them:"},
		&cobra.Group{ID: "admin", Title: "Set up:"},
	)
	add := func(group string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add("work", a.runCommand(), a.devCommand(), a.workerCommand(), a.submitCommand(), a.sendCommand(), a.demoCommand())
	add("look", a.explainCommand(), a.doctorCommand(), a.taskCommand(), a.queueCommand(), a.orphanCommand())
	add("admin", a.migrateCommand(), a.configCommand(), a.versionCommand())
	return root
}

// group is a command that only holds others.
func (a *app) group(use, short, long string, commands ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use: use, Short: short, Long: long,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(commands...)
	return c
}

func (a *app) helpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Help about a command",
		Long:  "Help prints what a command does, its flags and an example. It is the same as COMMAND --help.",
		RunE: func(cmd *cobra.Command, args []string) error {
			found, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 && found.HasSubCommands() {
				return unknownCommand(found, rest[0])
			}
			return found.Help()
		},
	}
}

func unknownCommand(parent *cobra.Command, name string) error {
	var names []string
	for _, c := range parent.Commands() {
		if c.IsAvailableCommand() {
			names = append(names, c.Name())
		}
	}
	return usagef("unknown command %q for %s; commands: %s%s", name, parent.CommandPath(), strings.Join(names, ", "), didYouMean(name, names))
}

// flagError rewrites the errors of flag parsing: the flag, what is wrong, a suggestion.
func flagError(cmd *cobra.Command, err error) error {
	if positional := cmd.Flags().Args(); cmd.HasSubCommands() && len(positional) > 0 {
		return unknownCommand(cmd, positional[0]) // a flag of a mistyped command is unknown because of it
	}
	if unknown, ok := errors.AsType[*pflag.NotExistError](err); ok {
		var names []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if !f.Hidden {
				names = append(names, "--"+f.Name)
			}
		})
		name := "--" + unknown.GetSpecifiedName()
		if short := unknown.GetSpecifiedShortnames(); short != "" {
			if cmd.HasSubCommands() {
				return usagef("unknown flag %q for %s; see %s --help", "-"+short, cmd.CommandPath(), cmd.CommandPath())
			}
			return usagef("unknown flag %q for %s; arguments that start with - go after --", "-"+short, cmd.CommandPath())
		}
		return usagef("unknown flag %q for %s%s; see %s --help", name, cmd.CommandPath(), didYouMean(name, names), cmd.CommandPath())
	}
	if bad, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		return usagef("--%s %q: %s", bad.GetFlag().Name, bad.GetValue(), bad.Unwrap())
	}
	return usagef("%s", err)
}

// didYouMean suggests the name that was most likely meant, or nothing.
func didYouMean(name string, names []string) string {
	best, distance := "", max(2, len(name)/3)+1
	for _, n := range names {
		d := levenshtein.ComputeDistance(strings.ToLower(name), strings.ToLower(n))
		if d < distance && d < len(n) {
			best, distance = n, d
		}
	}
	if best == "" {
		if i := slices.IndexFunc(names, func(n string) bool { return len(name) > 2 && strings.HasPrefix(n, name) }); i >= 0 {
			best = names[i]
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %q?", best)
}

// arguments checks the number of arguments and shows the usage line if it is wrong.
func arguments(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			return usagef("%s: an argument is missing; usage: %s", cmd.CommandPath(), cmd.UseLine())
		case len(args) > most:
			return usagef("%s: unexpected argument %q; usage: %s", cmd.CommandPath(), args[most], cmd.UseLine())
		}
		return nil
	}
}
