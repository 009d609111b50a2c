//go:build !linux

package sqlite

// networkFS is not checked here: docs/operations/sqlite.md says to use a local disk.
func networkFS(string) (string, error) { return "", nil }
