package postgres_test

import (
	"slices"
	"testing"

	"github.com/google/uuid"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/postgres"
)

func explained(t *testing.T, c *opscore.Client, id opscore.ID) (codes []string) {
	t.Helper()
	causes, err := c.Explain(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	for _, cause := range causes {
		codes = append(codes, cause.Code)
	}
	return codes
}

func TestExplainTellsATaskThatWasNeverCommittedFromAnOrphan(t *testing.T) {
	s := open(t, database(t))
	c := &opscore.Client{Store: s}
	tx, err := s.Pool().Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	sub, err := charge.Submit(t.Context(), c, order{7}, postgres.In(tx))
	if err != nil {
		t.Fatal(err)
	}
	missing := []string{opscore.CauseNeverCommitted}
	if got := explained(t, c, sub.ID); !slices.Equal(got, missing) {
		t.Errorf("causes within the transaction = %v", got)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := explained(t, c, sub.ID); !slices.Equal(got, missing) {
		t.Errorf("causes after its end = %v", got)
	}
	message := opscore.Orphan{
		ID: uuid.Must(uuid.NewV7()), Queue: "q", Actor: "act", Reason: opscore.CodeActorUnknown, Why: "no live worker has actor act", Body: []byte("{}"),
	}
	if dropped, err := s.KeepOrphans(t.Context(), []opscore.Orphan{message}); err != nil || dropped > 0 {
		t.Fatalf("dropped %d, %v", dropped, err)
	}
	if got := explained(t, c, message.ID); !slices.Equal(got, []string{opscore.CauseOrphan}) {
		t.Errorf("causes = %v", got)
	}
	if _, err := s.AdoptOrphan(t.Context(), message.ID, opscore.Adoption{
		Request: opscore.NewRequest("act", nil, opscore.WithID(message.ID), opscore.Queue("q")), Message: message,
	}); err != nil {
		t.Fatal(err)
	}
	if got := explained(t, c, message.ID); !slices.Equal(got, []string{opscore.CauseNoWorker}) {
		t.Errorf("causes of the adopted one = %v", got)
	}
}
