package sqlite_test

import (
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/sqlite"
	"github.com/opscore/opscore/storetest"
)

var harness = storetest.Harness{
	Open: func(dir string) (opscore.Store, func() error, error) {
		s, err := sqlite.Open(filepath.Join(dir, "opscore.db"))
		if err != nil {
			return nil, nil, err
		}
		return s, s.Close, nil
	},
	Around: synctest.Test,
	Pass:   func(_ opscore.Store, d time.Duration) { time.Sleep(d) },
}

func TestConformance(t *testing.T) { storetest.Run(t, harness) }

func TestDiscarderConformance(t *testing.T) { storetest.RunDiscarder(t, harness) }

func TestTheStoreBehavesLikeItsModel(t *testing.T) { storetest.RunModel(t, harness) }
