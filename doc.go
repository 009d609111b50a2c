// Package opscore is a durable background-task system: every task you submit either runs, or opscore says exactly
// why not.
//
// A task's life is a straight walk through these files: [Client.Submit] (client.go) stores it, a [Source]
// (source.go) claims it for a [Worker] (worker.go), whose handler (actor.go) runs it, and what the attempt's end
// means (task.go) is recorded in the [Store] (store.go). If the worker dies, the [Keeper] (keeper.go) takes the task
// back. docs/life-of-a-task.md follows it through every goroutine.
package opscore
