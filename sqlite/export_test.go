package sqlite

import (
	"context"
	"fmt"
)

// FreeBytes is what the inspector asks for.
var FreeBytes = freeBytes

// LimitPages makes SQLite report a full disk once the file has this many pages.
func (s *Store) LimitPages(n int) error {
	var got int
	if err := s.writer.QueryRowContext(context.Background(), fmt.Sprintf("PRAGMA max_page_count = %d", n)).Scan(&got); err != nil {
		return err
	}
	return nil
}

// SetReadOnly makes the writer's statements fail as on a file that became read-only, or ends that.
func (s *Store) SetReadOnly(on bool) error {
	_, err := s.writer.ExecContext(context.Background(), fmt.Sprintf("PRAGMA query_only = %t", on))
	return err
}
