package postgres

import (
	"testing"
	"time"
)

func TestAConnectionThatIsNotAnsweredIsGivenUp(t *testing.T) {
	for url, want := range map[string]time.Duration{
		"postgres://127.0.0.1/app":                   connectTimeout,
		"postgres://127.0.0.1/app?connect_timeout=3": 3 * time.Second,
	} {
		config, err := parseConfig(url)
		if err != nil || config.ConnConfig.ConnectTimeout != want {
			t.Errorf("%s: %v, want a timeout of %s", url, err, want)
		}
	}
}
