// Package batch groups what arrives while a flush is under way into the next flush.
package batch

import (
	"runtime"
	"sync"
)

// Batch hands added items to one flush at a time, in order, with no timer: an item that finds no flush
// under way starts one, and whatever is added meanwhile waits to be flushed together.
// It is safe for concurrent use and owns no goroutine while it is empty.
type Batch[T any] struct {
	limit int
	flush func([]T)

	mu       sync.Mutex
	waiting  []T
	flushing bool
}

// New returns a Batch that flushes at most limit items at a time.
func New[T any](limit int, flush func([]T)) *Batch[T] {
	return &Batch[T]{limit: limit, flush: flush}
}

// Add queues items for the next flush and returns at once.
func (b *Batch[T]) Add(items ...T) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.waiting = append(b.waiting, items...)
	if !b.flushing && len(b.waiting) > 0 {
		b.flushing = true
		go b.run()
	}
}

func (b *Batch[T]) run() {
	runtime.Gosched() // what is about to be added joins
	for {
		items := b.Take()
		if len(items) > 0 {
			b.flush(items)
		} else if b.end() {
			return
		}
	}
}

// Take removes and returns what is waiting now, at most the limit. Only flush may call it, to let items that
// came meanwhile join.
func (b *Batch[T]) Take() []T {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := min(len(b.waiting), b.limit)
	items := b.waiting[:n:n]
	if b.waiting = b.waiting[n:]; len(b.waiting) == 0 {
		b.waiting = nil
	}
	return items
}

// end marks the batch as idle unless something is waiting.
func (b *Batch[T]) end() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.flushing = len(b.waiting) > 0
	return !b.flushing
}
