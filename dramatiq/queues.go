package dramatiq

import (
	"cmp"
	"fmt"
	"regexp"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/rabbitmq"
)

// What the names of a queue's companions end in.
const (
	delayed = ".DQ" // messages that are not due yet
	dead    = ".XQ" // messages that nobody could run
)

var queueRule = regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9._-]*$`)

// ValidQueue reports, as an [opscore.ErrInvalid], whether name can name a queue of Dramatiq: not one of its companions.
func ValidQueue(name string) error {
	var why string
	switch {
	case !queueRule.MatchString(name) || len(name) > 200:
		why = "a name of Dramatiq's has letters, digits, . _ and -, and begins with a letter or _"
	case strings.HasSuffix(name, delayed) || strings.HasSuffix(name, dead):
		why = "name the queue itself, without " + name[len(name)-3:] + ": what belongs to it is found"
	case strings.HasPrefix(name, "amq.") || strings.HasPrefix(name, "opscore.") || strings.HasPrefix(name, "opscore-"):
		why = "the name is reserved: amq. is the broker's, opscore. and opscore- are for tickets"
	default:
		return nil
	}
	return &opscore.Error{Code: opscore.CodeInvalid, Message: fmt.Sprintf("queue %q: %s", clip(name), why)}
}

// DeadFor is how long Dramatiq keeps dead letters.
const DeadFor = 7 * 24 * time.Hour

// Queues says how queues are made that do not exist. Python must say the same, or it fails when it declares them; the zero value is Dramatiq's default.
type Queues struct {
	MaxPriority int           // as RabbitmqBroker(max_priority=…); 0 for none
	DeadFor     time.Duration // as the environment variable dramatiq_dead_message_ttl; 0 means 7 days
}

// Declarations returns how a queue and its companions are declared, the dead letters' first.
func (q Queues) Declarations(queue string) []rabbitmq.Declaration {
	live := func(name string) rabbitmq.Declaration {
		args := amqp.Table{"x-dead-letter-exchange": "", "x-dead-letter-routing-key": queue + dead}
		if q.MaxPriority > 0 {
			args["x-max-priority"] = int64(q.MaxPriority)
		}
		return rabbitmq.Declaration{Name: name, Args: args}
	}
	letters := amqp.Table{"x-message-ttl": cmp.Or(q.DeadFor, DeadFor).Milliseconds()}
	return []rabbitmq.Declaration{{Name: queue + dead, Args: letters}, live(queue), live(queue + delayed)}
}

func (q Queues) validate() error {
	switch {
	case q.MaxPriority < 0 || q.MaxPriority > 255:
		return &opscore.Error{Code: opscore.CodeInvalid, Message: fmt.Sprintf("max priority %d: must be between 1 and 255", q.MaxPriority)}
	case q.DeadFor < 0 || q.DeadFor > 0 && q.DeadFor < time.Millisecond:
		return &opscore.Error{Code: opscore.CodeInvalid, Message: fmt.Sprintf("dead letters for %s: must be at least 1ms", q.DeadFor)}
	}
	return nil
}
