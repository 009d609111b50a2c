package batch

import (
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestWhatArrivesDuringAFlushIsFlushedTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var flushes [][]int
		b := New(100, func(items []int) {
			time.Sleep(time.Second)
			flushes = append(flushes, items)
		})
		b.Add(1)
		synctest.Wait()
		b.Add(2)
		b.Add(3, 4)
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if len(flushes) != 2 || !slices.Equal(flushes[0], []int{1}) || !slices.Equal(flushes[1], []int{2, 3, 4}) {
			t.Errorf("flushes = %v, want [[1] [2 3 4]]", flushes)
		}
	})
}

func TestAFlushNeverExceedsTheLimitAndLosesNothing(t *testing.T) {
	const limit, adders, each = 7, 8, 100
	var mu sync.Mutex
	var biggest int
	got := map[int]int{}
	done := make(chan struct{})
	b := New(limit, func(items []int) {
		if !mu.TryLock() {
			t.Error("two flushes at once")
			return
		}
		defer mu.Unlock()
		biggest = max(biggest, len(items))
		for _, i := range items {
			got[i]++
		}
		if len(got) == adders*each {
			close(done)
		}
	})
	for a := range adders {
		go func() {
			for i := range each {
				b.Add(a*each + i)
			}
		}()
	}
	<-done
	mu.Lock()
	defer mu.Unlock()
	if biggest > limit {
		t.Errorf("biggest flush = %d, want at most %d", biggest, limit)
	}
	for i, n := range got {
		if n != 1 {
			t.Errorf("item %d was flushed %d times", i, n)
		}
	}
}
