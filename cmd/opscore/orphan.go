package main

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/dramatiq"
)

func (a *app) orphanCommand() *cobra.Command {
	return a.group("orphan", "Look at messages that belong to no task",
		`Orphan looks after messages of a broker that belong to no task: that nobody could read, that name an actor which no worker has or a task which
does not exist, or that came again after their task was over. They are kept for 30 days, unless orphans.keep says otherwise, and 10,000 of
them at most, unless orphans.max does. Nothing is done about them until somebody makes them tasks or drops them.`,
		a.orphanListCommand(), a.orphanShowCommand(), a.orphanAdoptCommand(), a.orphanDropCommand())
}

// orphans returns the store in its role of keeping orphans; ok is false if it never meets one.
func (s *session) orphans() (store opscore.Orphans, ok bool) {
	store, ok = s.store.(opscore.Orphans)
	return store, ok
}

// noOrphans says why there are none in a database.
func (s *session) noOrphans() string {
	return fmt.Sprintf("%s has no orphans: they come from a broker, which only a postgres:// database can have", s.place)
}

// orphanAction is a command about one orphan.
func (a *app) orphanAction(c *cobra.Command, do func(context.Context, *session, opscore.Orphans, opscore.ID) error) *cobra.Command {
	c.Args = arguments(1, 1)
	c.ValidArgsFunction = cobra.NoFileCompletions
	c.RunE = func(cmd *cobra.Command, args []string) error {
		id, err := parseOrphanID(args[0])
		if err != nil {
			return err
		}
		return a.with(cmd, existing, func(ctx context.Context, s *session) error {
			store, ok := s.orphans()
			if !ok {
				return errors.New(s.noOrphans())
			}
			err := do(ctx, s, store, id)
			if errors.Is(err, opscore.ErrOrphanNotFound) {
				return fmt.Errorf("orphan %s not found in %s; see opscore orphan list%s", id, s.place, s.again())
			}
			return err
		})
	}
	return c
}

func parseOrphanID(text string) (opscore.ID, error) {
	id, err := parseID(text)
	if err != nil {
		return id, usagef("%q is not the id of an orphan: ids look like 01890a5d-ac96-774b-bcce-b302099a8057; see opscore orphan list", text)
	}
	return id, nil
}

// orphanFilter is a filter as flags give it.
type orphanFilter struct {
	opscore.OrphanFilter
	given bool
}

func (f *orphanFilter) add(flags *pflag.FlagSet) {
	text := func(name, usage string, parse func(string) (string, error), set func(string)) {
		addFlag(flags, name, usage, parse, func(v string) { set(v); f.given = true })
	}
	text("reason", "only for this `REASON`, such as undecodable, actor_unknown, task_not_found or replayed",
		parseReason, func(v string) { f.Reason = opscore.Code(v) })
	text("queue", "only from this `QUEUE`", parseQueue, func(v string) { f.Queue = v })
	addFlag(flags, "message", "only those that came with this message `ID`", parseID, func(id opscore.ID) { f.Message, f.given = id, true })
	addFlag(flags, "older-than", "only those last seen longer than `DURATION` ago", parsePeriod, func(d time.Duration) { f.OlderThan, f.given = d, true })
	addFlag(flags, "newer-than", "only those last seen within `DURATION`", parsePeriod, func(d time.Duration) { f.NewerThan, f.given = d, true })
}

func (a *app) orphanListCommand() *cobra.Command {
	var f orphanFilter
	c := &cobra.Command{
		Use:   "list",
		Short: "List orphans, the latest arrival first",
		Long: `List shows orphans, the latest arrival first, 50 of them unless --limit says otherwise. All conditions must hold. To page on,
give the last id to --before. With --json their bodies are left out; show has them.`,
		Example: `  opscore orphan list
  opscore orphan list --reason undecodable --queue images --newer-than 24h
  opscore orphan list --json --limit 1000`,
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd, existing, func(ctx context.Context, s *session) error { return s.listOrphans(ctx, f.OrphanFilter) })
		},
	}
	f.add(c.Flags())
	addFlag(c.Flags(), "limit", "at most `N` orphans, up to 1000 (default 50)", parsePage, func(n int) { f.Limit = n })
	addFlag(c.Flags(), "before", "only orphans that arrived before the one with this `ID`", parseOrphanID, func(id opscore.ID) { f.Before = id })
	return c
}

func (s *session) listOrphans(ctx context.Context, f opscore.OrphanFilter) error {
	var orphans []opscore.Orphan
	store, ok := s.orphans()
	if ok {
		var err error
		if orphans, err = store.ListOrphans(ctx, f); err != nil {
			return err
		}
	}
	switch {
	case s.json:
		return s.printJSON(append([]opscore.Orphan{}, orphans...))
	case !ok:
		s.say("%s", s.noOrphans())
		return nil
	case len(orphans) == 0:
		s.say("no orphan matches")
		return nil
	}
	rows := make([][]string, len(orphans))
	for i, o := range orphans {
		rows[i] = []string{
			o.ID.String(), string(o.Reason), o.Queue, cmp.Or(clip(o.Actor, 40), "-"), fmt.Sprint(o.Count), fmt.Sprint(o.Size), age(o.LastSeen), cmp.Or(clip(firstLine(o.Why), 70), "-"),
		}
	}
	if err := s.table([]string{"ID", "REASON", "QUEUE", "ACTOR", "COUNT", "BYTES", "SEEN", "WHY"}, rows); err != nil {
		return err
	}
	if len(orphans) == cmp.Or(f.Limit, 50) {
		s.say("there may be more: opscore orphan list … --before %s", orphans[len(orphans)-1].ID)
	}
	return nil
}

func (a *app) orphanShowCommand() *cobra.Command {
	return a.orphanAction(&cobra.Command{
		Use:   "show ID",
		Short: "Show an orphan: its reason, headers and body",
		Long: `Show prints all that is kept of a message that belongs to no task. What a terminal could misread is escaped; --json has the
exact bytes of the body, in base64.`,
		Example: `  opscore orphan show 01890a5d-ac96-774b-bcce-b302099a8057
  opscore orphan show --json 01890a5d-ac96-774b-bcce-b302099a8057 | jq -r .body | base64 -d`,
	}, func(ctx context.Context, s *session, store opscore.Orphans, id opscore.ID) error {
		o, err := store.GetOrphan(ctx, id)
		if err != nil {
			return err
		}
		if s.json {
			return s.printJSON(o)
		}
		return s.showOrphan(o)
	})
}

func (s *session) showOrphan(o opscore.Orphan) error {
	var b sheet
	field := b.field
	field("orphan", o.ID.String())
	if o.Message != o.ID {
		field("message", o.Message.String()+", which came with another body before")
	}
	field("queue", o.Queue)
	field("actor", o.Actor)
	field("reason", string(o.Reason))
	field("why", o.Why)
	field("seen", fmt.Sprintf("%s, first %s, last %s", times(o.Count), when(o.FirstSeen), when(o.LastSeen)))
	field("headers", clip(o.Headers, maxShownBody))
	size := fmt.Sprintf("%d bytes", o.Size)
	if o.Size > len(o.Body) {
		size += fmt.Sprintf(", of which %d are kept", len(o.Body))
	}
	field("size", size)
	field("body", shownBody(o.Body))
	return s.print(b.String())
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

// maxShownBody is what a person reads of a body.
const maxShownBody = 4 << 10

// shownBody is a body as text, or as hexadecimal digits if it is none.
func shownBody(body []byte) string {
	text := string(body)
	if !utf8.Valid(body) {
		text = "hex " + hex.EncodeToString(body[:min(len(body), maxShownBody)])
	}
	if short := clip(text, maxShownBody); short != text || len(text) < len(body) {
		return short + " (--json shows all)"
	}
	return text
}

func (a *app) orphanAdoptCommand() *cobra.Command {
	var newID bool
	var queue string
	c := a.orphanAction(&cobra.Command{
		Use:   "adopt ID",
		Short: "Make a task of an orphan",
		Long: `Adopt makes a pending task of a message of Dramatiq's, as if it had come from the broker now, and deletes the orphan: both or
neither. The task has the message's id. If there is a task with that id already, as when the message came again after it was over, --new-id
makes another one: then its work is done once more.`,
		Example: `  opscore orphan adopt 01890a5d-ac96-774b-bcce-b302099a8057
  opscore orphan adopt --new-id --queue images 01890a5d-ac96-774b-bcce-b302099a8057`,
	}, func(ctx context.Context, s *session, store opscore.Orphans, id opscore.ID) error {
		return s.adoptOrphan(ctx, store, id, queue, newID)
	})
	c.Flags().BoolVar(&newID, "new-id", false, "give the task an id of its own instead of the message's")
	addFlag(c.Flags(), "queue", "put the task into `QUEUE` instead of the message's", parseQueue, func(q string) { queue = q })
	return c
}

func (s *session) adoptOrphan(ctx context.Context, store opscore.Orphans, id opscore.ID, queue string, newID bool) error {
	o, err := store.GetOrphan(ctx, id)
	if err != nil {
		return err
	}
	m, err := s.decodeOrphan(o, queue)
	if err != nil {
		return fmt.Errorf("orphan %s cannot become a task: %w", id, err)
	}
	if newID {
		if m.Request.ID, err = uuid.NewV7(); err != nil {
			return err
		}
	}
	t, err := store.AdoptOrphan(ctx, id, m)
	if errors.Is(err, opscore.ErrConflict) {
		return fmt.Errorf("orphan %s cannot become a task: %w; --new-id gives it another id", id, err)
	}
	if errors.Is(err, opscore.ErrInvalid) {
		return fmt.Errorf("orphan %s cannot become a task: %s", id, err.Error()) // the mistake is the message's, not the command line's
	}
	if err != nil {
		return err
	}
	s.warn(opscore.Submission{ID: t.ID, Warnings: s.client.Warnings(ctx, t.Queue, t.Actor)})
	if s.json {
		return s.printJSON(t)
	}
	return s.printf("orphan %s is task %s now, of actor %s in queue %s", id, t.ID, t.Actor, t.Queue)
}

// decodeOrphan reads a message of Dramatiq's, with the defaults of the actors that opscore.yaml declares.
func (s *session) decodeOrphan(o opscore.Orphan, queue string) (opscore.Adoption, error) {
	if o.Size > len(o.Body) {
		return opscore.Adoption{}, fmt.Errorf("its body has %d bytes, of which only %d are kept", o.Size, len(o.Body))
	}
	handlers := opscore.Handlers{}
	for _, actor := range s.conf.actors {
		if err := actor.register(handlers, nil); err != nil {
			return opscore.Adoption{}, err
		}
	}
	return dramatiq.Adoption(cmp.Or(queue, o.Queue), o.Body, handlers)
}

func (a *app) orphanDropCommand() *cobra.Command {
	var f orphanFilter
	var all, yes bool
	c := &cobra.Command{
		Use:   "drop [ID…]",
		Short: "Delete orphans",
		Long: `Drop deletes orphans for good: those whose ids are given, or all that match the conditions. In the latter case, or with --all, it only says how
many there are, unless --yes is given as well.`,
		Example: `  opscore orphan drop 01890a5d-ac96-774b-bcce-b302099a8057
  opscore orphan drop --reason undecodable --older-than 168h --yes`,
		RunE: func(cmd *cobra.Command, args []string) error {
			ids, err := parseIDs(args, parseOrphanID)
			if err != nil {
				return err
			}
			switch some := f.given || all; {
			case len(ids) == 0 && !some:
				return usagef("which orphans? give their ids, conditions such as --reason undecodable, or --all; see opscore orphan list")
			case len(ids) > 0 && some:
				return usagef("ids and conditions cannot be combined: give one or the other")
			case f.given && all:
				return usagef("--all and conditions cannot be combined: give one or the other")
			}
			return a.with(cmd, existing, func(ctx context.Context, s *session) error {
				store, ok := s.orphans()
				if !ok {
					return errors.New(s.noOrphans())
				}
				if len(ids) > 0 {
					return s.dropOrphans(ctx, store, ids)
				}
				return s.dropMatching(ctx, store, f.OrphanFilter, yes)
			})
		},
	}
	f.add(c.Flags())
	c.Flags().BoolVar(&all, "all", false, "all orphans")
	c.Flags().BoolVar(&yes, "yes", false, "delete what matches the conditions, instead of counting it")
	return c
}

// dropOrphans drops the ones that are named; it is an error if one is not there.
func (s *session) dropOrphans(ctx context.Context, store opscore.Orphans, ids []opscore.ID) error {
	dropped, err := store.DropOrphans(ctx, ids)
	if err != nil {
		return err
	}
	var missing []string
	for _, id := range ids {
		if !slices.Contains(dropped, id) {
			missing = append(missing, id.String())
		}
	}
	if err := s.sayDropped(len(dropped)); err != nil || len(missing) == 0 {
		return err
	}
	return fmt.Errorf("not found in %s: %s", s.place, strings.Join(missing, ", "))
}

func (s *session) sayDropped(n int) error {
	if s.json {
		return s.printJSON(map[string]int{"dropped": n})
	}
	return s.printf("%s dropped", plural(n, "orphan"))
}

// dropMatching drops all that match, or counts them.
func (s *session) dropMatching(ctx context.Context, store opscore.Orphans, f opscore.OrphanFilter, yes bool) error {
	f.Limit = 1000
	total := 0
	for {
		page, err := store.ListOrphans(ctx, f)
		if err != nil {
			return err
		}
		if len(page) == 0 {
			break
		}
		if !yes {
			f.Before = page[len(page)-1].ID
			total += len(page)
			continue
		}
		ids := make([]opscore.ID, len(page))
		for i, o := range page {
			ids[i] = o.ID
		}
		dropped, err := store.DropOrphans(ctx, ids)
		if err != nil {
			return err
		}
		total += len(dropped)
	}
	if yes || total == 0 {
		return s.sayDropped(total)
	}
	return usagef("%s would be dropped for good; to do so, add --yes", plural(total, "orphan"))
}

func parsePage(text string) (int, error) {
	n, err := parseCount(text)
	if err == nil && n > 1000 {
		err = errors.New("at most 1000; to page on, see --before")
	}
	return n, err
}

// parseReason refuses what no orphan can have as its reason: it would only look as if there were none.
func parseReason(text string) (string, error) {
	var known []string
	for _, c := range []opscore.Code{
		opscore.CodeActorUnknown, opscore.CodeConflict, opscore.CodeForeignDatabase, opscore.CodeInvalid, opscore.CodeReplayed, opscore.CodeTaskNotFound,
		opscore.CodeTooLarge, opscore.CodeUndecodable,
	} {
		known = append(known, string(c))
	}
	if !slices.Contains(known, text) {
		return "", fmt.Errorf("no orphan has the reason %q; known: %s%s", text, strings.Join(known, ", "), didYouMean(text, known))
	}
	return text, nil
}
