package postgres

import (
	"cmp"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/opscore/opscore"
)

// libpqKeys are the parameters that every libpq in use knows: it refuses a URL with any other.
var libpqKeys = []string{
	"application_name", "channel_binding", "client_encoding", "connect_timeout", "dbname", "fallback_application_name", "gssencmode", "host",
	"hostaddr", "keepalives", "keepalives_count", "keepalives_idle", "keepalives_interval", "krbsrvname", "options", "passfile", "password", "port",
	"requirepeer", "service", "sslcert", "sslcrl", "sslkey", "sslmode", "sslpassword", "sslrootcert", "target_session_attrs", "tcp_user_timeout", "user",
}

// saidFirst are those that [Conninfo] takes from what was made of the URL and of the environment, and the secrets.
var saidFirst = []string{"host", "port", "dbname", "user", "password", "sslpassword"}

// Conninfo returns the connection string with which programs of libpq, such as psql, get where a URL for [Open] leads, without its passwords, and whether
// they take the URL itself as well: they refuse parameters that they do not know, such as those of the pool. The error is [opscore.ErrInvalid].
func Conninfo(text string) (conninfo string, takesURL bool, err error) {
	config, err := pgconn.ParseConfig(text)
	if err != nil {
		return "", false, &opscore.Error{Code: opscore.CodeInvalid, Message: "database URL: " + redacted(err)}
	}
	hosts, ports := servers(config)
	words := []string{
		"host=" + conninfoValue(hosts), "port=" + conninfoValue(ports),
		"dbname=" + conninfoValue(cmp.Or(config.Database, config.User)), "user=" + conninfoValue(config.User),
	}
	takesURL = true
	for _, p := range parameters(text) {
		switch key := p[0]; {
		case !slices.Contains(libpqKeys, key):
			takesURL = false
		case !slices.Contains(saidFirst, key):
			words = append(words, key+"="+conninfoValue(p[1]))
		}
	}
	return strings.Join(words, " "), takesURL, nil
}

// servers lists those that are tried, as libpq has such lists.
func servers(config *pgconn.Config) (hosts, ports string) {
	var all, at []string
	type server struct {
		host string
		port uint16
	}
	last := server{}
	for _, f := range append([]*pgconn.FallbackConfig{{Host: config.Host, Port: config.Port}}, config.Fallbacks...) {
		if s := (server{f.Host, f.Port}); s != last { // else the same without encryption
			all, at, last = append(all, s.host), append(at, strconv.Itoa(int(s.port))), s
		}
	}
	return strings.Join(all, ","), strings.Join(at, ",")
}

// parameters returns names and values of a URL that was parsed by pgx: a password may have a ? in it.
func parameters(text string) (all [][2]string) {
	_, rest, _ := strings.Cut(text, "://")
	if i := strings.IndexAny(rest, "@/"); i >= 0 && rest[i] == '@' {
		rest = rest[i+1:]
	}
	_, query, _ := strings.Cut(rest, "?")
	for pair := range strings.SplitSeq(query, "&") {
		name, value, isPair := strings.Cut(pair, "=")
		name, errName := url.PathUnescape(name)
		value, errValue := url.PathUnescape(value)
		if !isPair || errName != nil || errValue != nil {
			continue
		}
		if name == "ssl" && value == "true" {
			name, value = "sslmode", "require"
		}
		all = append(all, [2]string{name, strings.Trim(value, " ")})
	}
	return all
}

// conninfoValue quotes as libpq has it.
func conninfoValue(s string) string {
	if s != "" && !strings.ContainsAny(s, " \t\n\v\f\r'\\") {
		return s
	}
	return fmt.Sprintf("'%s'", strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s))
}
