//go:build !linux

package sqlite

import "github.com/opscore/opscore"

// Other systems do not list who has locks, and are not asked for the rest.

func writer(string) *opscore.Backend { return nil }

func readOnly(string) string { return "" }

func freeBytes(string) *int64 { return nil }
