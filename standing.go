package opscore

// Standing is where the tasks of one queue stand.
type Standing struct {
	Queue  string `json:"queue"`
	Paused *Pause `json:"paused,omitempty"`
}
