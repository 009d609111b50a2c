package host

import (
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opscore/opscore"
)

// connected says what a worker was told to use, as far as its arguments and our own names in its environment tell. Of URLs it keeps what
// cannot be secret; what a file may say is not known.
func connected(pid int, args []string, dir string) (all []opscore.Endpoint) {
	env := environment(pid)
	add := func(flag, variable string, read func(text string) (opscore.Endpoint, bool)) {
		text, origin := flagValue(args, flag), "flag --"+flag
		if text == "" {
			text, origin = env[variable], "env "+variable
		}
		if e, ok := read(text); ok && text != "" {
			e.Origin = origin
			all = append(all, e)
		}
	}
	schema := flagValue(args, "schema")
	if schema == "" {
		schema = env["OPSCORE_SCHEMA"]
	}
	if schema == "" {
		schema = "opscore"
	}
	add("database", "OPSCORE_DATABASE_URL", func(text string) (opscore.Endpoint, bool) { return database(text, schema, dir) })
	add("broker", "OPSCORE_BROKER_URL", broker)
	return all
}

// environment reads what is ours of the environment that a process was started with. The system allows it to the same user and to root.
func environment(pid int) map[string]string {
	ours := map[string]string{}
	text, err := os.ReadFile(proc(pid, "environ"))
	if err != nil {
		return ours
	}
	for pair := range strings.SplitSeq(string(text), "\x00") {
		if name, value, _ := strings.Cut(pair, "="); strings.HasPrefix(name, "OPSCORE_") {
			ours[name] = value
		}
	}
	return ours
}

// databases are the files of SQLite that a process has open, which it has a log of changes beside.
func databases(pid int) (files []string) {
	entries, err := os.ReadDir(proc(pid, "fd"))
	if err != nil {
		return nil
	}
	const gone = " (deleted)"
	open := map[string]string{} // by the path without that
	for _, e := range entries {
		if target, err := os.Readlink(filepath.Join(proc(pid, "fd"), e.Name())); err == nil {
			open[strings.TrimSuffix(target, gone)] = target
		}
	}
	for path, target := range open {
		if _, logged := open[path+"-wal"]; logged {
			files = append(files, target)
		}
	}
	slices.Sort(files)
	return files
}

// flagValue is the value that a command line gives to a flag; "" for none.
func flagValue(args []string, name string) string {
	for i, arg := range args {
		if value, ok := strings.CutPrefix(arg, "--"+name+"="); ok {
			return value
		}
		if arg == "--"+name && i+1 < len(args) {
			return args[i+1]
		}
	}
	return ""
}

// database names a database without secrets.
func database(text, schema, dir string) (opscore.Endpoint, bool) {
	if strings.HasPrefix(text, "postgres://") || strings.HasPrefix(text, "postgresql://") {
		u, err := url.Parse(text)
		if err != nil {
			return opscore.Endpoint{}, false
		}
		return opscore.Endpoint{Kind: "postgres", Address: hostPort(u, "5432"), Name: strings.TrimPrefix(u.Path, "/") + "/" + schema}, true
	}
	path := strings.TrimPrefix(strings.TrimPrefix(text, "sqlite:"), "//")
	if strings.Contains(path, "://") || strings.HasPrefix(path, "~") || !filepath.IsAbs(path) && dir == "" {
		return opscore.Endpoint{}, false
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(dir, path)
	}
	return opscore.Endpoint{Kind: "sqlite", Name: filepath.Clean(path)}, true
}

// broker names a broker without secrets; of several servers of one, all.
func broker(text string) (e opscore.Endpoint, ok bool) {
	var hosts []string
	for part := range strings.SplitSeq(text, ",") {
		u, err := url.Parse(strings.TrimSpace(part))
		if err != nil || u.Host == "" {
			return e, false
		}
		port := "5672"
		if u.Scheme == "amqps" {
			port = "5671"
		}
		hosts = append(hosts, hostPort(u, port))
		if e.Name = strings.TrimPrefix(u.Path, "/"); e.Name == "" {
			e.Name = "/"
		}
	}
	e.Kind, e.Address = "rabbitmq", strings.Join(hosts, ",")
	return e, true
}

func hostPort(u *url.URL, port string) string {
	if u.Port() != "" {
		port = u.Port()
	}
	return net.JoinHostPort(u.Hostname(), port)
}
