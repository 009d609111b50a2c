package opscoretest

import (
	"regexp"
	"runtime"
	"strings"
)

// handlerFrame is where a worker calls a handler.
const handlerFrame = "opscore.(*crew).call("

// handlerStacks returns the stacks of the goroutines that run handlers; only those of one bubble, if it is not "".
func handlerStacks(bubble string) string {
	return strings.Join(stacks(bubble, func(stack string) bool { return strings.Contains(stack, handlerFrame) }), "\n\n")
}

// stacks returns those of the goroutines of a bubble, or of all for "", that are wanted.
func stacks(bubble string, wanted func(stack string) bool) (all []string) {
	buf := make([]byte, 1<<20)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	for stack := range strings.SplitSeq(string(buf), "\n\n") {
		head, _, _ := strings.Cut(stack, "\n")
		if (bubble == "" || inBubble(head) == bubble) && wanted(stack) {
			all = append(all, strings.TrimSpace(stack))
		}
	}
	return all
}

var bubbleRule = regexp.MustCompile(`synctest bubble \d+`)

// inBubble returns the bubble that the first line of a stack names, or "".
func inBubble(head string) string { return bubbleRule.FindString(head) }

// ownBubble returns the bubble that the caller is in, or "".
func ownBubble() string {
	buf := make([]byte, 200)
	return inBubble(string(buf[:runtime.Stack(buf, false)]))
}
