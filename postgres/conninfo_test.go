package postgres_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/postgres"
)

func TestWhatPsqlIsGivenToGetWhereAURLLeads(t *testing.T) {
	for _, name := range []string{"PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGSERVICE", "PGSSLMODE"} {
		t.Setenv(name, "")
	}
	t.Setenv("PGUSER", "env")
	for _, tc := range []struct {
		url, want string
		takesURL  bool
	}{
		{"postgres://me:canary@db:6432/app", "host=db port=6432 dbname=app user=me", true},
		{"postgres://me:can?a=ry@db/app", "host=db port=5432 dbname=app user=me", true},
		{"postgresql://me@db/app?sslmode=verify-full&application_name=my%20app", `host=db port=5432 dbname=app user=me sslmode=verify-full application_name='my app'`, true},
		{"postgres:///app?host=/tmp/sock&port=54999&password=canary&user=it's%5Cme", `host=/tmp/sock port=54999 dbname=app user='it\'s\\me'`, true},
		{"postgres://me@db/app?sslmode=disable&pool_max_conns=4", "host=db port=5432 dbname=app user=me sslmode=disable", false},
		{"postgres://me@db/app?default_query_exec_mode=cache_describe&ssl=true", "host=db port=5432 dbname=app user=me sslmode=require", false},
		{"postgres://me@db/app?search_path=x", "host=db port=5432 dbname=app user=me", false},
		{"postgres://me@a,b:7,[::1]/app?sslmode=prefer&target_session_attrs=primary", "host=a,b,::1 port=5432,7,5432 dbname=app user=me sslmode=prefer target_session_attrs=primary", true},
		{"postgres://db", "host=db port=5432 dbname=env user=env", true},
	} {
		got, takesURL, err := postgres.Conninfo(tc.url)
		if got != tc.want || takesURL != tc.takesURL || err != nil {
			t.Errorf("%s: got %s, %t, %v, want %s, %t", tc.url, got, takesURL, err, tc.want, tc.takesURL)
		}
	}
	if _, _, err := postgres.Conninfo("postgres://me:canary@db:port/app"); !errors.Is(err, opscore.ErrInvalid) || strings.Contains(err.Error(), "canary") {
		t.Errorf("got %v", err)
	}
}
