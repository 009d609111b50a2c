// Package host reads what this host knows of opscore's workers on it: whether they exist, whether they are stopped, and whether anybody reads what they write.
package host

import (
	"context"
	"os"

	"github.com/opscore/opscore"
)

// Inspector looks at the processes of this host. It opens nothing that belongs to them in a way that they could notice. What it may not see, as a
// user who is neither theirs nor root, it leaves out.
type Inspector struct{}

// Gather looks at the workers that known has on this host, and for workers that it does not have. On systems other than Linux it is an error.
func (Inspector) Gather(ctx context.Context, known *opscore.Facts) (opscore.Facts, error) {
	name, err := os.Hostname()
	if err != nil {
		return opscore.Facts{}, err
	}
	h := &opscore.HostFacts{Name: name}
	h.Processes, err = look(ctx, name, known.Workers)
	return opscore.Facts{Host: h}, err
}
