package rabbitmq

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"github.com/opscore/opscore"
)

// message is a ticket as it is on the wire. It never holds args: those are read from the row.
type message struct {
	Version  int        `json:"v"`
	Instance opscore.ID `json:"instance"`
	Ticket   opscore.ID `json:"ticket"`
	Queue    string     `json:"queue"`
	Tasks    string     `json:"tasks"` // each with its claim number: "ID:0 ID:3"; a list would take several times as long to read
}

const (
	wireVersion     = 1
	maxMessageBytes = 4 << 10
)

func encode(instance opscore.ID, t *opscore.Ticket) ([]byte, error) {
	tasks := make([]byte, 0, len(t.Tasks)*40)
	for i, id := range t.Tasks {
		if i > 0 {
			tasks = append(tasks, ' ')
		}
		tasks = append(tasks, id.String()...)
		tasks = append(tasks, ':')
		tasks = strconv.AppendInt(tasks, t.ClaimSeqs[i], 10)
	}
	return json.Marshal(message{wireVersion, instance, t.ID, t.Queue, string(tasks)})
}

var errForeign = errors.New("it is a ticket of another database")

// decode reads a ticket of the instance. Anybody who may publish can have written it.
func decode(instance opscore.ID, body []byte) (opscore.Ticket, error) {
	if len(body) > maxMessageBytes {
		return opscore.Ticket{}, fmt.Errorf("%d bytes: a ticket has at most %d", len(body), maxMessageBytes)
	}
	var m message
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		return opscore.Ticket{}, fmt.Errorf("decode ticket: %w", err)
	}
	switch {
	case d.More():
		return opscore.Ticket{}, errors.New("decode ticket: something follows it")
	case m.Version != wireVersion:
		return opscore.Ticket{}, fmt.Errorf("version %d of tickets is not known", m.Version)
	case m.Instance == opscore.ID{}:
		return opscore.Ticket{}, errors.New("decode ticket: it names no database")
	case m.Instance != instance:
		return opscore.Ticket{}, errForeign
	}
	if err := opscore.ValidName("queue", m.Queue); err != nil {
		return opscore.Ticket{}, err
	}
	t := opscore.Ticket{ID: m.Ticket, Queue: m.Queue}
	for text := range strings.SplitSeq(m.Tasks, " ") {
		id, seq, _ := strings.Cut(text, ":")
		task, err := uuid.Parse(id)
		if err != nil {
			return opscore.Ticket{}, fmt.Errorf("decode ticket: a task's id: %w", err)
		}
		n, err := strconv.ParseInt(seq, 10, 64)
		if err != nil {
			return opscore.Ticket{}, fmt.Errorf("decode ticket: a task's claim number: %w", err)
		}
		if len(t.Tasks) == opscore.MaxTicket {
			return opscore.Ticket{}, fmt.Errorf("decode ticket: it names more than %d tasks", opscore.MaxTicket)
		}
		t.Tasks, t.ClaimSeqs = append(t.Tasks, task), append(t.ClaimSeqs, n)
	}
	return t, nil
}
