// A slide a process, with Nextflow:
//
//   nextflow run main.nf --slides 'SLIDES/*.svs' --codebook tcga.safetensors --options '--k 64 --encoder uni'
//
// Outputs come to results/. The exit codes are those of fseg: 2 is a mistake that no retry mends.
params.slides = null
params.codebook = null
params.options = ''
params.out = 'results'

process SEGMENT {
    tag { slide.name }
    cpus 2
    errorStrategy { task.exitStatus == 2 ? 'ignore' : 'retry' }
    maxRetries 2
    publishDir params.out, mode: 'copy'

    input:
    path slide
    path codebook

    output:
    path 'out/*', emit: results

    script:
    def book = codebook ? "--codebook ${codebook}" : ''
    """
    fseg segment '${slide}' -o out --json --threads ${task.cpus} ${book} ${params.options}
    """
}

workflow {
    book = params.codebook ? file(params.codebook, checkIfExists: true) : []
    SEGMENT(channel.fromPath(params.slides, checkIfExists: true), book)
}
